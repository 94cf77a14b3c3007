"""How much memory a run takes and what holds it, said before anything is loaded: by one step without numbers.

`asking` is what the page and the command line use, and needs no torch: it looks the answer up, or lets a process of its
own find it. `tracing` wires the run as training does, with tensors that have shapes and no memory, and a `Ledger`
counts what they would take. `pace` says how long it will take, by an earlier run.
"""
