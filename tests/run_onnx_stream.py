"""A streaming graph run by nothing but onnxruntime and numpy: `python -I -S run_onnx_stream.py FOLDER GRAPH IN OUT`.

IN holds `data`, `sizes` (how its last axis is cut into calls) and `offset` (where the stream is); OUT gets `result`.
"""

import json
import sys

folder, graph, inputs, outputs = sys.argv[1:]
sys.path.insert(0, folder)

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

print(onnxruntime.__version__)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
given = np.load(inputs)
entries = json.loads(session.get_modelmeta().custom_metadata_map["miso.state"])
state = {e["input"]: np.zeros([1 if dim == "batch" else dim for dim in e["shape"]], e["dtype"]) for e in entries}
state["offset"][:] = given["offset"]
carried = {e["output"] for e in entries}
(main_input,) = {node.name for node in session.get_inputs()} - set(state)
(main_output,) = {node.name for node in session.get_outputs()} - carried
results = []
for data in np.split(given["data"], np.cumsum(given["sizes"])[:-1], axis=-1):
    result, *after = session.run([main_output, *(e["output"] for e in entries)], {main_input: data, **state})
    state = dict(zip(state, after, strict=True))
    results.append(result)
np.savez(outputs, result=np.concatenate(results, axis=-1))
