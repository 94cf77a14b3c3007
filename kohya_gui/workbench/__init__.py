"""The workbench's server side: the folder that is open, what is asked of it as JSON, long work on a thread."""
