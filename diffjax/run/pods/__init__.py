"""Compiling for accelerators that are not there: `train.py --compile_for`, docs/pods.md.

topologies   "v5p:4x4x4" -> devices to compile for
chips        what a chip can do: one table, each number with its source
flops        multiplications of a traced program, exact on any system
hlo          a compiled program's text: instructions, and how often each runs
collectives  what devices send to each other
work         what a device multiplies, and what it moves to and from memory
roofline     the least time that all these take
report       what a person reads
"""
