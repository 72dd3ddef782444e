"""Other engines, and as a program one of them for `transc bench --against`: it answers each line on stdin with a line of JSON on stdout.

The first answer says that the model is loaded; by then its outputs are in a file, to be compared with others. Then `run` gives the
nanoseconds of one inference. The end of stdin ends the process.

An engine is made from a `spec` (`model`, `threads`, `dtype`, and a `folder` that it may write to) and inputs by name.
"""

import json
import os
import shutil
import sys
import tempfile
import time


def from_folder(spec, inputs):
    """The model of a Hugging Face folder and its inputs, for torch."""
    import torch
    import transformers

    torch.set_num_threads(spec["threads"])
    config = transformers.AutoConfig.from_pretrained(spec["model"], local_files_only=True)
    names = [n for n in config.architectures or [] if n.endswith(("ForCausalLM", "ForImageClassification"))]
    auto = getattr(transformers, names[0]) if names else transformers.AutoModel
    module = auto.from_pretrained(spec["model"], local_files_only=True).eval()
    return torch, module, {n: torch.from_numpy(x) for n, x in inputs.items()}


def onnx_file(spec, inputs):
    """The ONNX file, exported at the sizes of the inputs where the model is a folder."""
    if not os.path.isdir(spec["model"]):
        return spec["model"]
    torch, module, feed = from_folder(spec, inputs)
    with torch.inference_mode():
        outputs = module(**feed)
    path = os.path.join(tempfile.mkdtemp(dir=spec["folder"]), "model.onnx")
    torch.onnx.export(module, (), path, kwargs=feed, input_names=list(feed), output_names=list(outputs.keys()), dynamo=True)
    return path


class Ort:
    def __init__(self, spec, inputs):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = spec["threads"]
        options.inter_op_num_threads = 1
        # Workers spin inside a run and stop when it ends: full speed, and no cores taken from the next engine.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = ort.InferenceSession(onnx_file(spec, inputs), options, providers=["CPUExecutionProvider"])
        known = {i.name for i in self.session.get_inputs()}
        self.feed = {n: x for n, x in inputs.items() if n in known}
        self.names = [o.name for o in self.session.get_outputs()]
        self.version = ort.__version__

    def run(self):
        return self.session.run(None, self.feed)


class OpenVino:
    def __init__(self, spec, inputs):
        import openvino as ov

        core = ov.Core()
        model = core.read_model(onnx_file(spec, inputs))
        known = {n for i in model.inputs for n in i.names}
        self.feed = {n: x for n, x in inputs.items() if n in known}
        model.reshape({n: list(x.shape) for n, x in self.feed.items()})
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": spec["threads"],
            "INFERENCE_PRECISION_HINT": spec["dtype"],
        }
        compiled = core.compile_model(model, "CPU", options)
        self.request = compiled.create_infer_request()
        self.names = [next(iter(o.names), "") for o in compiled.outputs]
        self.version = ov.__version__.split("-")[0]

    def run(self):
        self.request.infer(self.feed, share_inputs=True)
        return [self.request.get_output_tensor(i).data for i in range(len(self.names))]


class DeepSparse:
    def __init__(self, spec, inputs):
        import deepsparse

        # It writes the sizes into the file that it is given.
        path = shutil.copy(onnx_file(spec, inputs), os.path.join(tempfile.mkdtemp(dir=spec["folder"]), "model.onnx"))
        names = deepsparse.Engine(path, batch_size=1).input_names
        self.feed = [inputs[n] for n in names]
        shapes = [list(x.shape) for x in self.feed]
        self.engine = deepsparse.Engine(path, batch_size=shapes[0][0], num_cores=spec["threads"], input_shapes=shapes)
        self.names = self.engine.output_names
        self.version = deepsparse.__version__

    def run(self):
        return self.engine.run(self.feed)


class Torch:
    compiled = False

    def __init__(self, spec, inputs):
        import torch  # missing torch is told apart from a model that it cannot take

        if not os.path.isdir(spec["model"]):
            raise ValueError("PyTorch takes a Hugging Face folder, not an ONNX file")
        self.torch, self.module, self.feed = from_folder(spec, inputs)
        with self.torch.inference_mode():
            self.names = list(self.module(**self.feed).keys())
        if self.compiled:
            self.module = self.torch.compile(self.module)
        self.bf16 = spec["dtype"] == "bf16"
        self.version = torch.__version__.split("+")[0]

    def run(self):
        with self.torch.inference_mode(), self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.bf16):
            return [x.float().numpy() for x in self.module(**self.feed).to_tuple()]


class Inductor(Torch):
    compiled = True


ENGINES = {"ort": Ort, "openvino": OpenVino, "deepsparse": DeepSparse, "torch": Torch, "inductor": Inductor}


def main():
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    os.environ.update(OMP_NUM_THREADS=str(spec["threads"]), MKL_NUM_THREADS=str(spec["threads"]))

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    try:
        import numpy as np

        with np.load(spec["inputs"]) as file:
            inputs = {name: file[name] for name in file.files}
        engine = ENGINES[spec["peer"]](spec, inputs)
        for _ in range(spec["warmup"]):
            outputs = engine.run()
        np.savez(spec["outputs"], **{n or f"output{i}": np.asarray(x) for i, (n, x) in enumerate(zip(engine.names, outputs))})
    except ImportError as e:
        return answer(missing=e.name or str(e))
    except Exception as e:  # any library, any reason: the message is what helps
        return answer(error=f"{type(e).__name__}: {e}")
    answer(version=engine.version)
    for line in sys.stdin:
        if line.strip() != "run":
            return None
        start = time.perf_counter_ns()
        engine.run()
        answer(ns=time.perf_counter_ns() - start)


if __name__ == "__main__":
    main()
