//! `transc explain`: every error code, what it means and what to do.

use transc::ir::diag::Fault;

use super::{Failure, source};

/// Code, meaning, advice; sorted by code within each letter.
const CODES: &[(&str, &str, &str)] = &[
    (
        "T0100",
        "A file that the model names cannot be found or read.",
        "Check the path and its permissions. External data must lie beside the model file.",
    ),
    ("T0101", "The model file is empty.", "Copy or download it again."),
    (
        "T0102",
        "The file is of another kind than its name says.",
        "Give an ONNX model, a Hugging Face folder, a .tir text or an artefact of transc.",
    ),
    ("T0103", "The file is not valid protobuf of the ONNX schema.", "Check that it is an ONNX model; if it is, it is damaged."),
    ("T0104", "The file ends before its contents do.", "Copy or download it again and compare the sizes."),
    (
        "T0105",
        "Messages or graphs are nested deeper than the limit.",
        "No exporter nests that deep; the file is damaged or hostile.",
    ),
    (
        "T0106",
        "A file of external data is larger than the limit.",
        "Raise the limit in the import options if the file is meant to be that large.",
    ),
    (
        "T0107",
        "A tensor has more axes or elements than the limit.",
        "Raise the limit in the import options if the model is meant to be like that.",
    ),
    (
        "T0108",
        "The model has no graph, or its operator set imports are missing, contradictory or impossible.",
        "Export the model again.",
    ),
    (
        "T0109",
        "The operator set version is outside the range that transc reads.",
        "Export with a supported opset, or convert the model with ONNX's version converter.",
    ),
    (
        "T0110",
        "A value is defined twice or an initializer has no name.",
        "Each value of a graph is written once; fix the exporter.",
    ),
    (
        "T0111",
        "A node reads a value that nothing defines.",
        "Check the name for typing errors; in a subgraph, only values of enclosing graphs are visible.",
    ),
    ("T0112", "An output of the model is not defined by any node.", "Check the name of the output."),
    ("T0113", "The graph has a cycle.", "A dataflow graph has none; fix the exporter."),
    ("T0114", "A model-local function is defined twice or calls itself.", "Fix the exporter; recursive functions are not ONNX."),
    (
        "T0115",
        "Inlining functions and subgraphs gives more nodes than the limit.",
        "The model is far larger than it looks, or hostile; raise the limit in the import options.",
    ),
    (
        "T0116",
        "A --dim or --set names nothing of the model, or what it gives does not fit: an empty range, a number of values.",
        "`transc inspect MODEL` lists dims and inputs.",
    ),
    ("T0120", "A value has no type, or an element type that ONNX does not define.", "Export the model again."),
    (
        "T0121",
        "A dimension is negative or the element count overflows.",
        "Export the model again; use a named dimension where the size is not known.",
    ),
    (
        "T0122",
        "The data of a tensor does not fit its type and dims, or stands in several places.",
        "The file is damaged or badly written; export the model again.",
    ),
    ("T0123", "A sparse tensor is inconsistent.", "Its indices must be sorted, distinct and inside its dims."),
    ("T0130", "An entry of external data is malformed.", "Offsets and lengths are non-negative numbers."),
    (
        "T0131",
        "The path of external data is not a plain relative path.",
        "External data must lie in the folder of the model or below.",
    ),
    (
        "T0132",
        "The path of external data leaves the folder of the model.",
        "Move the data beside the model. transc does not follow links out of that folder.",
    ),
    ("T0133", "External data is not a regular file.", "Devices, pipes and folders are refused."),
    ("T0134", "External data lies outside its file.", "The data file is too short or belongs to another model."),
    ("T0135", "A file changed while it was read.", "Wait until it is written completely."),
    ("T0140", "An .npz or .npy file cannot be read.", "Write it with numpy.savez; object arrays are refused."),
    ("T0141", "An .npz file has more entries or data than the limit.", "Split it, or raise the limit in the options."),
    ("T0150", "The .tir text has an error.", "The message has line and column; `transc opt MODEL` prints valid text."),
    ("T0199", "A bug in transc: a check before should have found this.", "Please report it with the model."),
    ("T0201", "An operator has the wrong number of operands.", "Check the node."),
    ("T0202", "An operator does not take this element type.", "Insert a cast, or export with another type."),
    ("T0203", "An axis lies outside the rank or is given twice.", "Check the attribute `axis` or `axes` of the node."),
    ("T0204", "An operator does not take operands of this rank.", "Check the shapes that meet at the node."),
    (
        "T0205",
        "The dims of the operands do not fit each other.",
        "Check the shapes that meet at the node. Two symbolic dims are equal only if they have one name.",
    ),
    (
        "T0212",
        "Operands do not broadcast.",
        "From the right, dims must be equal or 1. A symbolic dim counts as 1 only if it is fixed: --dim NAME=1.",
    ),
    ("T0301", "An operator has no importer.", "`transc inspect MODEL --support` lists everything that is missing."),
    (
        "T0302",
        "An operator is known, but not with these attributes or types.",
        "The message says what is missing; often another export option avoids it.",
    ),
    ("T0303", "A node contradicts the definition of its operator.", "Fix the exporter."),
    (
        "T0304",
        "A shape depends on the contents of an input.",
        "transc needs shapes as expressions of the input dims before the model runs. Fix the input with `--set NAME=VALUE`, or export without data-dependent control flow.",
    ),
    (
        "T0305",
        "Evaluating or unrolling a node exceeds a limit.",
        "Loops with constant trip counts are unrolled up to the limit of the import options.",
    ),
    (
        "T0310",
        "A value is not a dense tensor of a supported type and known rank.",
        "Sequences, maps, optionals and strings are not supported.",
    ),
    ("T0399", "A bug in transc: the import does not settle.", "Please report it with the model."),
    (
        "T0401",
        "The model in the Hugging Face folder is of a kind without importer, or uses a variant that is not supported.",
        "Export it to ONNX.",
    ),
    (
        "T0402",
        "A Hugging Face folder lacks config.json or its weights, or they cannot be read.",
        "A folder needs config.json and model.safetensors (or its sharded form).",
    ),
    ("T0403", "A value of config.json, or its size, is beyond the limit.", "Check the file."),
    ("T0404", "config.json is not a JSON object.", "Download it again."),
    ("T0405", "A field of config.json is missing or has no sensible value.", "Download it again."),
    ("T0406", "The safetensors files or their index are inconsistent.", "Download them again, all shards."),
    (
        "T0407",
        "A weight that the config asks for is missing or has another shape.",
        "Weights and config belong to different models, or to a task head that is not supported.",
    ),
    ("T0501", "There is no pass of this name.", "`transc passes` lists them."),
    (
        "T0502",
        "A pass was asked to run on a module of another stage.",
        "`transc passes` shows the stage that each pass takes and gives.",
    ),
    ("T0503", "A bug in transc: a pass made an ill-typed node.", "Please report it with the model."),
    ("T0504", "A bug in transc: a module does not verify between passes.", "Please report it with the model."),
    ("T0510", "No codec of this name merges tokens.", "The message lists the codecs; for example `--merge tome:r=8`."),
    (
        "T0511",
        "The parameters of `--merge` are wrong.",
        "`tome:r=N` removes N tokens per block; `,inflect=-1` removes most of them early.",
    ),
    (
        "T0512",
        "As many tokens are to be merged as the model has.",
        "Choose a smaller `r`. At most half of the unprotected tokens of a block are merged at once.",
    ),
    (
        "T0513",
        "The model has no place where tokens may be merged.",
        "The message says for each attention why not. Causal attention, position biases and windows need every token in its place.",
    ),
    (
        "T0514",
        "The value of `--sparse`, `--int8`, `--llm-int8`, `--w4`, `--factorize` or `--budget` is wrong.",
        "`--sparse prune-4x1=0.8`; `--int8 static:mse,smooth`; `--llm-int8 6.0`; `--w4 g128`; `--factorize dsformer:r=256,k=16`; `--budget max-err=0.01`.",
    ),
    (
        "T0515",
        "Static ranges, outliers or a budget were asked for without inputs to observe.",
        "Give `transc compile` typical inputs with `--calib in.npz`.",
    ),
    (
        "T0516",
        "The model has no layer whose weight can be compressed.",
        "Products of an activation by a constant matrix in f32 are compressed; all else stays as it is.",
    ),
    (
        "T0517",
        "The error that `--budget` allows cannot be met.",
        "The message names the smallest error that was reached, and with how many layers compressed. Give that, or another codec.",
    ),
    (
        "T0518",
        "The value of `--mat` or `--prune-structured` is wrong.",
        "`--mat 1/2` or `--mat l0-3=1/2,l4=768`; `--prune-structured heads=0.25,ffn=0.5,layers=0.1` or `mask=FILE.safetensors`.",
    ),
    (
        "T0519",
        "The model has no layer of this kind or name whose units could be cut.",
        "Feed-forward layers are two matrix products by constants around an activation; heads stand before a product behind attention.",
    ),
    (
        "T0520",
        "A layer cannot have this size.",
        "A share must give a whole number of hidden units, and a number may not exceed them. A block without a residual sum stays, and hidden dims stay where a node does more than multiply, add, normalise or move them.",
    ),
    (
        "T0521",
        "A mask file does not fit.",
        "Tensors are `layer.N.heads.mask`, `hidden.mask` and the like, finite, one number per unit; docs/sparsity-and-quantisation.md lists them.",
    ),
    ("T0528", "Products are not computed in this element type.", "`--dtype f32` or `--dtype bf16`."),
    (
        "T0529",
        "`--dtype bf16` was asked for together with codes for weights.",
        "A weight is either rounded to bf16 or coded in fewer bits: leave one of the options out.",
    ),
    ("T0601", "An op has no lowering for this type or form.", "`transc run --interpret` runs it with the reference interpreter."),
    ("T0602", "There is no target of this name.", "host, x86-64-v3, x86-64-v4, cuda:sm_80 or cuda:sm_90a."),
    ("T0603", "A bug in transc: the backend refused a kernel.", "Please report it with the model."),
    ("T0604", "The linker is missing or failed.", "Install a C compiler driver (`cc`); `transc doctor` shows what is found."),
    ("T0605", "This build of transc lacks a back end.", "Build it with the feature that the message names."),
    ("T0606", "There is no backend of this name.", "llvm, clif, mlir; `transc doctor` shows which are in this build."),
    ("T0607", "The backend has no such text.", "LLVM IR comes from --backend llvm, Cranelift IR from --backend clif."),
    (
        "T0608",
        "A part of the model has no form in MLIR.",
        "Dims must follow from the inputs (fix the others with --dim); everything else is written as linalg on tensors.",
    ),
    (
        "T0609",
        "The target has no output of this form.",
        "For devices: .tsc, .ptx, .ll, .loops, .tir, .dot. For the host: all but .ptx.",
    ),
    (
        "T0610",
        "A function of this type has no code for devices.",
        "Devices have no library of functions; `erf` and remainders of f64 are missing. Compile for the host.",
    ),
    ("T0615", "An artefact for a device holds no code for other targets.", "Compile twice, into two files."),
    ("T0901", "An array cannot be an input or output.", "Inputs are arrays of bool, integers and floats of 16 to 64 bits."),
    (
        "T0902",
        "The extension of the output names no form.",
        "Use .so, .tsc, .o, .tir, .loops, .mlir, .ll, .clif, .s, .ptx or .dot, or --emit.",
    ),
    ("T0903", "The output would replace the model or is a folder.", "Choose another output with -o."),
    ("T0904", "An input is missing or cannot be read.", "`transc inspect MODEL` lists the inputs."),
    ("T0905", "--until names no pass of the pipeline.", "`transc passes` lists them in order."),
    ("T0906", "There is no error code of this name.", "Codes look like T0212 or R0122 and stand in the error messages."),
    (
        "T0907",
        "A step of `transc opt --check` has two sides that differ.",
        "A rule of transc is wrong: please report it with the model.",
    ),
    (
        "T0908",
        "The simulation of the loops stopped: inputs that do not fit, or a kernel that touches memory in a way that it must not.",
        "The message says which; the second is a bug in transc, please report it with the model.",
    ),
    (
        "T0920",
        "An engine of `bench --against` has no Python package, or the interpreter is not there.",
        "Install the packages of bench/requirements.txt, and name the interpreter with --python.",
    ),
    (
        "T0921",
        "An engine of `bench --against` cannot run the model.",
        "Leave it out, or name a file that it takes with --peer-model. PyTorch takes Hugging Face folders only.",
    ),
    (
        "T0922",
        "The outputs of an engine of `bench --against` differ from transc's.",
        "`transc run --expect` shows which output and where; --tolerance sets the limit.",
    ),
    (
        "T0923",
        "The engines of `bench --against` cannot load an artefact.",
        "Name the model that it was compiled from with --peer-model.",
    ),
    ("T0924", "A file that was asked for cannot be written.", "Name a file in a folder that is there and can be written."),
    (
        "T0930",
        "Only code of LLVM for this machine can be tuned.",
        "Run `transc tune` on the machine that the code is for, without --target and --backend.",
    ),
    (
        "T0931",
        "A tuning file cannot be used: it is damaged, of another version of transc, or for another processor.",
        "Make it again with `transc tune`, on the machine that the code is for.",
    ),
    ("R0101", "The file is not an artefact of transc.", "Compile the model with `transc compile`."),
    ("R0102", "A file cannot be read or written.", "Check the path, its permissions and the free space."),
    ("R0103", "The artefact was written for another version of the runtime.", "Compile the model again with this version."),
    ("R0104", "The artefact is damaged: its sections do not fit together.", "Copy it again or compile the model again."),
    ("R0105", "A checksum of the artefact is wrong.", "Copy it again or compile the model again."),
    ("R0106", "The launch plan of the artefact is invalid.", "The file is damaged or was written by another program."),
    (
        "R0107",
        "The code needs an instruction set that this processor lacks.",
        "Compile with `--target host` here, or with a smaller --target.",
    ),
    ("R0108", "The system's loader cannot load the code.", "Check that the file is complete and made for this system."),
    ("R0120", "A name is not an input of the model.", "`transc inspect` lists the inputs."),
    ("R0121", "An input is missing or given twice.", "`transc inspect` lists the inputs."),
    (
        "R0122",
        "An input has another element type or shape than the model expects.",
        "The message names the input, what it expects and what it got.",
    ),
    ("R0123", "Two inputs disagree about a symbolic dim.", "Dims of one name have one value in a run."),
    ("R0124", "A symbolic dim is outside the range that the model was compiled for.", "Compile with `--dim NAME=LO..HI`."),
    ("R0125", "A symbolic dim follows from no input.", "Fix it when compiling: --dim NAME=N."),
    ("R0126", "A name is not a dim of the model, or is given twice.", "`transc inspect` lists the dims."),
    (
        "R0127",
        "A relation between dims that the model relies on does not hold.",
        "The message names both sides; choose input shapes that satisfy it.",
    ),
    ("R0128", "A size is negative or overflows at these dims.", "Choose other input shapes."),
    (
        "R0129",
        "A tensor's bytes do not fit its type and shape.",
        "The number of bytes is the product of the dims and the element size.",
    ),
    (
        "R0130",
        "An output buffer has another type or shape than the output.",
        "`bind` gives the shapes of the outputs for the dims of a run.",
    ),
    ("R0131", "The interface was used in the wrong way.", "The message says how."),
    ("R0140", "Memory for a run cannot be allocated.", "Use smaller inputs or free memory."),
    (
        "R0141",
        "A kernel stopped: an index outside its tensor, or an integer division by zero.",
        "The message names the node; check the contents of the inputs.",
    ),
    (
        "R0150",
        "The device is not there, or its driver refuses.",
        "Run on the host (without -d); `nvidia-smi` shows devices and driver.",
    ),
    (
        "R0151",
        "The model is compiled for another kind of machine.",
        "A model for a device runs with -d cuda:N on devices that its --target fits; any other runs on the host.",
    ),
];

/// Runs the command.
pub fn run(code: &str) -> Result<(), Failure> {
    let wanted = code.trim().to_uppercase();
    match CODES.iter().find(|(c, ..)| *c == wanted) {
        Some((code, meaning, advice)) => {
            source::print_text(&format!("{code}: {meaning}\n\n{advice}\n"));
            Ok(())
        }
        None => {
            let help = "codes look like T0212 or R0122 and stand in the error messages";
            Err(Failure::one("T0906", Fault::Invalid, format!("there is no error code `{code}`"), help))
        }
    }
}
