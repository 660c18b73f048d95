"""A fresh process of the suite `cold`: imports an implementation, computes attention once, and says when.

    python cold_start.py NAME FOLDER

FOLDER holds q.npy, k.npy and v.npy [batch, num_heads, seqlen, head_dim]; the result goes to o.npy. A line is printed
for each step, with the time of the system's monotonic clock, and one that says where ours was imported from. Nothing
else of the benchmark is imported: this process is what is measured.
"""

import sys
import time

NAME, FOLDER = sys.argv[1:]


def say(step: str) -> None:
    print(step, time.monotonic(), flush=True)


def inputs() -> list:
    import numpy as np

    return [np.load(f"{FOLDER}/{name}.npy") for name in "qkv"]


def flashcore_drv() -> object:
    import flashcore_drv as fc

    say("import")
    print("from", fc.__file__)
    q, k, v = (fc.DeviceArray.from_numpy(x) for x in inputs())
    return fc.attention(q, k, v, layout="bhsd").to_numpy()


def pytorch() -> object:
    import torch

    say("import")
    q, k, v = (torch.from_numpy(x).cuda() for x in inputs())
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).cpu().numpy()


def jax() -> object:
    import jax

    say("import")
    q, k, v = (jax.device_put(x.swapaxes(1, 2)) for x in inputs())
    o = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return jax.device_get(o).swapaxes(1, 2)


say("interpreter")
result = {"flashcore_drv": flashcore_drv, "PyTorch": pytorch, "JAX": jax}[NAME]()
say("first_result")

import numpy as np  # noqa: E402

np.save(f"{FOLDER}/o.npy", result)
