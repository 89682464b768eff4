"""The run: from inputs to one complete output, with resume and accounting.

`state` goes on with the units that an earlier call has not finished, `retry` scores failed rows of an output again,
`update` what has changed. The units of a process that dies go to another one in `executors.processes`.
"""
