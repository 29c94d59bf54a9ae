"""A process that compiles for a TPU what it is sent, and answers with the program's text.

`python _worker.py TOPOLOGY` reads frames from standard input: eight bytes of length, then a serialized
`jax.export.Exported`. It answers each with a line of JSON. It is a process of its own because the compiler's library
reads its flags once, when it loads, and because its profiler ends the process where it meets what it can't model.
"""

import json
import sys
import time

import jax
from jax import export
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding


def compiled(exported: bytes, device: jax.Device) -> dict:
    """The optimized program of one exported function, and what the compiler says of its memory."""
    program = export.deserialize(bytearray(exported))
    sharding = SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding) for aval in program.in_avals]
    args, kwargs = jax.tree.unflatten(program.in_tree, shapes)
    start = time.perf_counter()
    executable = jax.jit(program.call).lower(*args, **kwargs).compile()
    seconds, memory = time.perf_counter() - start, executable.memory_analysis()
    assert memory is not None
    return {
        "hlo": executable.as_text(),
        "seconds": seconds,
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }


def main() -> None:
    """Serves until standard input ends."""
    device = topologies.get_topology_desc(topology_name=sys.argv[1], platform="tpu").devices[0]
    source = sys.stdin.buffer
    while head := source.read(8):
        try:
            answer = compiled(source.read(int.from_bytes(head, "big")), device)
        except Exception as error:  # told to the parent, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
