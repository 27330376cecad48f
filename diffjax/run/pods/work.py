"""What one device does in a compiled program: what it multiplies, what it moves to and from memory.

XLA's own `cost_analysis` counts the body of a loop once; here every instruction counts as often as
it runs.
"""

import re

from diffjax.run.pods import flops, hlo

# Instructions that move nothing: they name or group what is there.
STILL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
STILL |= {"conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "async-start"}
NAMED = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"}


def multiplied(module: hlo.Module) -> float | None:
    """FLOPs of matrix products and convolutions, as `flops.count`; None where a library has them.

    On a GPU they are calls of cuBLAS and cuDNN, whose text does not say what they multiply.

    Raises:
      ValueError: a product or a convolution whose sizes cannot be read.
    """
    total = 0
    for run in module.runs:
        instruction = run.instruction
        if instruction.opcode == "custom-call" and re.search(
            r'custom_call_target="(__cu|.*(?:matmul|gemm|conv|\$))', instruction.rest
        ):
            return None
        operands = module.operands(run.computation, instruction)
        count = {"dot": _dot, "convolution": _convolution}.get(instruction.opcode)
        if count is None:
            continue
        if len(operands) != 2:
            raise ValueError(f"{instruction.name}: {len(operands)} operands are known, not 2")
        total += run.times * count(instruction, operands)
    return float(total)


def _dot(instruction: hlo.Instruction, operands) -> int:
    contracted = instruction.attribute("lhs_contracting_dims") or ""
    total = 2
    for size in instruction.shapes[0].sizes:
        total *= size
    for axis in filter(None, contracted.split(",")):
        total *= operands[0].shapes[0].sizes[int(axis)]
    return total


def _convolution(instruction: hlo.Instruction, operands) -> int:
    left, kernel = (operand.shapes[0].sizes for operand in operands)
    out = instruction.shapes[0].sizes
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not found:
        raise ValueError(f"{instruction.name}: no dim_labels")
    lefts, kernels, outs = found.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    settings = dict(item.split("=") for item in window[1].split()) if window else {}

    def setting(name: str, i: int) -> str | None:
        return settings[name].split("x")[i] if name in settings else None

    total = 2 * out[outs.index("b")] * out[outs.index("f")] * kernel[kernels.index("i")]
    for axis in filter(str.isdigit, outs):
        i = int(axis)
        total *= flops.positions(
            left[lefts.index(axis)],
            kernel[kernels.index(axis)],
            out[outs.index(axis)],
            int(setting("stride", i) or 1),
            int((setting("pad", i) or "0_0").split("_")[0]),
            int(setting("lhs_dilate", i) or 1),
            int(setting("rhs_dilate", i) or 1),
        )
    return total


def moved(module: hlo.Module) -> float:
    """Bytes that are read from and written to the large memory, by what is not inside a fusion.

    An instruction reads its operands once and writes its result once; of a slice, what is taken;
    of an update in place, what is new. Faster memories of the chip cost nothing.
    """
    total = 0
    for run in module.runs:
        if not run.fused:
            total += run.times * _traffic(module, run.computation, run.instruction)
    return float(total)


def _large(shapes) -> int:
    return sum(shape.bytes for shape in shapes if not shape.space)


def _traffic(module: hlo.Module, name: str, instruction: hlo.Instruction) -> int:
    opcode = instruction.opcode
    if opcode in STILL or opcode.endswith(("-done", "-update")):
        return 0
    target = instruction.attribute("custom_call_target") if opcode == "custom-call" else None
    if target is not None and target.strip('"') in NAMED:
        return 0
    operands = module.operands(name, instruction)
    if opcode == "fusion":
        called, read = instruction.attribute("calls"), 0
        for i, operand in enumerate(operands):
            whole, sliced = _large(operand.shapes), _read(module, called, i)
            read += whole if sliced is None else min(whole, sliced)
        return read + _written(module, called, instruction)
    if opcode in ("dynamic-slice", "slice", "gather"):
        place = 0 if operands and operands[0].shapes[0].space else instruction.bytes
        return place + _large(instruction.shapes)
    if opcode == "slice-start":  # ((source), result, flag)
        source, result = instruction.shapes[:2]
        return (not source.space) * result.bytes + _large([result])
    if opcode == "copy-start":  # (result, source, flag)
        return _large(instruction.shapes[:2])
    if opcode == "dynamic-update-slice":
        return 2 * _large(operands[1].shapes)
    return sum(_large(operand.shapes) for operand in operands) + _large(instruction.shapes)


def _read(module: hlo.Module, called: str, index: int) -> int | None:
    """Bytes that a fusion takes of an operand that it only slices; None for any other."""
    inside = module.computations.get(called, {})
    names = [i.name for i in inside.values() if i.opcode == "parameter" and i.literal == str(index)]
    if not names:
        return None
    total, names = 0, set(names)
    for user in inside.values():
        at = [i for i, operand in enumerate(user.operands) if operand in names]
        if not at:
            continue
        if user.opcode == "bitcast":
            names.add(user.name)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and at == [0]:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and at == [0]:
            continue  # in place
        elif user.opcode == "fusion" and len(at) == 1:
            within = _read(module, user.attribute("calls"), at[0])
            if within is None:
                return None
            total += within
        else:
            return None
    return total


def _written(module: hlo.Module, called: str, instruction: hlo.Instruction) -> int:
    """Bytes of a fusion's results in the large memory; of one that is updated in place, the new."""
    inside = module.computations.get(called, {})
    root = next((i for i in inside.values() if i.root), None)
    if root is None:
        return _large(instruction.shapes)
    ends = [inside.get(n) for n in root.operands] if root.opcode == "tuple" else [root]
    if len(ends) != len(instruction.shapes):
        return _large(instruction.shapes)
    total = 0
    for end, shape in zip(ends, instruction.shapes):
        while end is not None and end.opcode == "bitcast":
            end = inside.get(end.operands[0])
        if end is not None and end.opcode == "dynamic-update-slice" and len(end.operands) > 1:
            update = inside.get(end.operands[1])
            if update is not None:
                total += update.bytes if not shape.space else 0
                continue
        total += _large([shape])
    return total
