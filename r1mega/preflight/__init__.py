"""What `r1mega check` answers and `r1mega run` asks before it starts: one function for both (`look`).

In this order, so that nobody is asked for 671B of weights by a run that could not start: settings and their laws,
abilities (model, layout, memory, engine), data files, weights. What is wrong or not built is an error; what is only
not there yet is listed, and `run` refuses it too. Settings, laws and abilities need no torch and take no time.
"""
