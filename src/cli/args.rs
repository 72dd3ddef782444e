//! The command line: commands, options, and their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use transc::Backend;

use super::bench::PeerName;

/// A compiler for transformer models: model file in, native code out.
#[derive(Parser, Debug)]
#[command(name = "transc", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Examples:
  transc compile model.onnx -o model.so          one library with kernels, weights and runtime, and a C header
  transc run model.onnx -i in.npz --output-npz out.npz
  transc run model.so -i in.npz --expect golden.npz --rtol 1e-4 --atol 1e-4
  transc bench model.onnx --dim batch=1 --dim seq=128
  transc inspect model.onnx --support            everything that is not supported, at once
  transc opt model.onnx --until fuse             the tensor IR after a pass

Exit codes: 0 ok, 1 other failure, 2 usage, 3 valid but unsupported, 4 invalid input, 5 verification failed,
6 a limit was reached, 7 environment, 70 a bug in transc, 130 and 143 interrupted.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print less: errors only.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compile a model to native code.
    Compile(CompileArgs),
    /// Run a model or an artefact on given inputs.
    Run(RunArgs),
    /// Show what a model or an artefact is: inputs, outputs, dims, ops, what is unsupported.
    Inspect(InspectArgs),
    /// Run passes on a model and print the tensor IR.
    Opt(OptArgs),
    /// List the passes in the order of the default pipeline.
    Passes {
        /// Machine-readable output.
        #[arg(long)]
        json: bool,
    },
    /// Time a model or an artefact.
    Bench(BenchArgs),
    /// Measure schedules for a model on this machine and write a file for `compile --tuning`.
    Tune(TuneArgs),
    /// Run two models or artefacts on the same inputs and compare their outputs; where these differ, find the layer that departs first. Lossy options
    /// are for the second one.
    Compare(CompareArgs),
    /// Show size, time and error of each layer, before and after the lossy steps that are asked for.
    Report(ReportArgs),
    /// Explain an error code.
    Explain {
        /// The code, such as T0212.
        code: String,
    },
    /// Check what this machine offers to transc.
    Doctor {
        /// Machine-readable output.
        #[arg(long)]
        json: bool,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Where the model comes from and how its dims are bound.
#[derive(Args, Debug, Clone)]
pub struct ModelArgs {
    /// An `.onnx` file, a Hugging Face folder, a `.tir` text, or (where a compiled model will do) an artefact.
    pub model: PathBuf,
    /// Fix a symbolic dim (`seq=128`) or give its range (`batch=1..32`). May be repeated.
    #[arg(long = "dim", value_name = "NAME=N|LO..HI", value_parser = parse_dim)]
    pub dims: Vec<DimArg>,
    /// Make an input of an ONNX file a constant, such as the condition of a branch (`use_cache_branch=1`): one number, or one per element.
    #[arg(long = "set", value_name = "INPUT=N[,N..]", value_parser = parse_set)]
    pub set: Vec<SetArg>,
}

/// How code is generated.
#[derive(Args, Debug, Clone)]
pub struct TargetArgs {
    /// `host`, `x86-64-v3`, `x86-64-v4`, a processor such as `znver4`, `cuda:sm_80` or `cuda:sm_90a`. Several, in a comma list, go into one
    /// artefact, which chooses when it is loaded. Default: the device of `-d`, else the host.
    #[arg(long)]
    pub target: Option<String>,
    /// Schedules that `transc tune` measured.
    #[arg(long, value_name = "FILE")]
    pub tuning: Option<PathBuf>,
    /// Who makes the code: `llvm` makes the fastest, `clif` is fastest at it, `mlir` is a third opinion. Default: the first of them that
    /// this build has.
    #[arg(long, value_name = "llvm|clif|mlir", value_parser = parse_backend)]
    pub backend: Option<Backend>,
    /// Effort of the optimiser: 0 compiles fastest.
    #[arg(short = 'O', value_name = "0..3", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub opt_level: u8,
    #[command(flatten)]
    pub lossy: LossyArgs,
}

/// Steps that change results.
#[derive(Args, Debug, Clone, Default)]
pub struct LossyArgs {
    /// Merge similar tokens of a vision transformer: `tome:r=8` removes 8 per block (`,inflect=-1`: most of them early).
    #[arg(long, value_name = "CODEC:r=N")]
    pub merge: Option<String>,
    /// Take a nested sub-model: the first hidden units of feed-forward layers, a share or a number. `1/2`, or by layer `l0-3=1/2,l4=768`; a
    /// layer may also be called by a part of its node's name.
    #[arg(long, value_name = "[LAYERS=]SIZE,..")]
    pub mat: Option<String>,
    /// Remove the hidden units, heads and blocks that count least: `heads=SHARE,ffn=SHARE,layers=SHARE`; or those that a learnt mask names:
    /// `mask=FILE.safetensors`.
    #[arg(long, value_name = "WHAT=SHARE,..")]
    pub prune_structured: Option<String>,
    /// Set small weights to zero: `prune-4x1=SHARE` in blocks of outputs by inputs (also `1x4` and `4x4`), `prune-2:4` or
    /// `prune-unstructured=SHARE`. Zeros that are there are used without this.
    #[arg(long, value_name = "PATTERN")]
    pub sparse: Option<String>,
    /// 8-bit codes for weights and activations: `dynamic`, or with ranges observed on the calibration inputs
    /// `static[:minmax|:percentile=P|:mse][,smooth[=ALPHA]][,outliers=MAGNITUDE][,attention]`.
    #[arg(long, value_name = "WAY", group = "codes")]
    pub int8: Option<String>,
    /// 8-bit codes for weights and activations, but for the columns of activations that reach this magnitude on the calibration inputs.
    #[arg(long, value_name = "MAGNITUDE", group = "codes")]
    pub llm_int8: Option<String>,
    /// 8-bit codes for weights alone, decoded as they are multiplied.
    #[arg(long, group = "codes")]
    pub w8: bool,
    /// 4-bit codes for weights alone, with a scale per output and N inputs, decoded as they are multiplied.
    #[arg(long, value_name = "gN", group = "codes")]
    pub w4: Option<String>,
    /// Make two products of each layer where that is faster: `dsformer:r=R,k=K` gives `R` columns of which each output takes `K` (`,b=B`: as many
    /// of each `B`), `low-rank:r=R`. `R` is a number, or a share of the inputs.
    #[arg(long, value_name = "CODEC:r=R,..", group = "codes")]
    pub factorize: Option<String>,
    /// Element type of the operands of products by constant weights: `f32` leaves the model as it is, `bf16` rounds them; sums stay in f32.
    #[arg(long, value_name = "f32|bf16")]
    pub dtype: Option<String>,
    /// Leave the layers with the largest errors as they are until the relative error of the outputs on the calibration inputs is at most E.
    #[arg(long, value_name = "max-err=E")]
    pub budget: Option<String>,
}

impl LossyArgs {
    /// True if nothing is asked for.
    pub fn is_empty(&self) -> bool {
        [
            &self.merge,
            &self.mat,
            &self.prune_structured,
            &self.sparse,
            &self.int8,
            &self.llm_int8,
            &self.w4,
            &self.factorize,
            &self.budget,
        ]
        .iter()
        .all(|o| o.is_none())
            && !self.w8
            && self.dtype.as_deref().is_none_or(|d| d == "f32")
    }
}

#[derive(Args, Debug)]
pub struct CompileArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Output file; its extension chooses the form unless `--emit` does. Default: the model's name with `.so`.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// What to write. Several: a comma list; each goes to the output's name with its own extension.
    #[arg(long, value_delimiter = ',')]
    pub emit: Vec<Emit>,
    /// Measure the error of lossy steps on these inputs and write it into the ledger.
    #[arg(long, value_name = "FILE.npz")]
    pub calib: Option<PathBuf>,
    /// Print why an expected rewrite did not happen, of all passes or of one.
    #[arg(long, value_name = "PASS", num_args = 0..=1, default_missing_value = "")]
    pub remarks: Option<String>,
    /// Compiler threads; 0 means one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Machine-readable summary on stdout.
    #[arg(long)]
    pub json: bool,
}

/// A form of output.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// Shared library with kernels, weights, runtime and a C header.
    So,
    /// Artefact for `transc run` and the Rust API.
    Tsc,
    /// Object file with the kernels.
    Obj,
    /// Tensor IR after all passes.
    Tir,
    /// Loop IR of the kernels.
    Loops,
    /// LLVM IR of the kernels, optimised.
    LlvmIr,
    /// Cranelift IR of the kernels.
    Clif,
    /// Assembly of the kernels.
    Asm,
    /// PTX of the kernels, for a `cuda:` target.
    Ptx,
    /// Graph of the kernel launches for Graphviz.
    Dot,
    /// The model in MLIR: linalg on tensors.
    Mlir,
    /// The kernels in MLIR: loops on memrefs.
    MlirLoops,
}

impl Emit {
    /// The usual extension of a file of this form.
    pub fn extension(self) -> &'static str {
        match self {
            Emit::So => "so",
            Emit::Tsc => "tsc",
            Emit::Obj => "o",
            Emit::Tir => "tir",
            Emit::Loops => "loops",
            Emit::Mlir => "mlir",
            Emit::MlirLoops => "loops.mlir",
            Emit::LlvmIr => "ll",
            Emit::Clif => "clif",
            Emit::Asm => "s",
            Emit::Ptx => "ptx",
            Emit::Dot => "dot",
        }
    }

    /// The form that an extension stands for.
    pub fn from_extension(ext: &str) -> Option<Self> {
        Self::value_variants().iter().copied().find(|e| e.extension() == ext)
    }
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Where to run: `cuda:0` for the first CUDA device. Default: the host.
    #[arg(short, long, value_name = "cuda:N", value_parser = parse_device)]
    pub device: Option<u32>,
    /// Inputs: `file.npz` with one array per input, or `name=@file.npy`. May be repeated.
    #[arg(short, long = "input", value_name = "FILE.npz|NAME=@FILE.npy", required = true)]
    pub inputs: Vec<String>,
    /// Write the outputs to this file.
    #[arg(long, value_name = "FILE.npz")]
    pub output_npz: Option<PathBuf>,
    /// Compare the outputs with this file; exit 5 if one differs.
    #[arg(long, value_name = "FILE.npz")]
    pub expect: Option<PathBuf>,
    #[command(flatten)]
    pub tolerance: Tolerance,
    /// Threads; 0 means one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print how long opening, the first run and a second run take.
    #[arg(long, conflicts_with_all = ["interpret", "simulate"])]
    pub time_phases: bool,
    /// Run the reference interpreter instead of compiled code.
    #[arg(long)]
    pub interpret: bool,
    /// Run the loops of the target in their interpreter, which watches every access: device code on any machine, slowly.
    #[arg(long, conflicts_with_all = ["interpret", "device"])]
    pub simulate: bool,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

/// `|got - want| <= atol + rtol * |want|` for floats; integers must be equal.
#[derive(Args, Debug, Clone, Copy)]
pub struct Tolerance {
    /// Relative tolerance.
    #[arg(long, default_value_t = 1e-4)]
    pub rtol: f64,
    /// Absolute tolerance.
    #[arg(long, default_value_t = 1e-4)]
    pub atol: f64,
}

#[derive(Args, Debug)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// List everything that is not supported, with node names. Exit 3 if there is anything.
    #[arg(long)]
    pub support: bool,
    /// Show the memory plan of an artefact at the sizes of `--dim`.
    #[arg(long)]
    pub memory: bool,
    /// Show the accuracy ledger of an artefact.
    #[arg(long)]
    pub ledger: bool,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct OptArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub lossy: LossyArgs,
    /// Run exactly these passes, in this order.
    #[arg(long, value_delimiter = ',', conflicts_with = "until")]
    pub passes: Option<Vec<String>>,
    /// Run the default pipeline up to and including this pass.
    #[arg(long, value_name = "PASS")]
    pub until: Option<String>,
    /// Write the IR here instead of stdout.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// Print why an expected rewrite did not happen, of all passes or of one.
    #[arg(long, value_name = "PASS", num_args = 0..=1, default_missing_value = "")]
    pub remarks: Option<String>,
    /// Print the time of each pass.
    #[arg(long)]
    pub time_passes: bool,
    /// Print the chain of rules by which equality saturation came to its result.
    #[arg(long)]
    pub explain: bool,
    /// Replay this chain: both sides of each step are evaluated in f64 on random inputs. Exit 5 if a step fails.
    #[arg(long)]
    pub check: bool,
    /// Stop after so many rules and changing passes, and say which was the last: find what breaks a model by bisection.
    #[arg(long, value_name = "N")]
    pub fuel: Option<u32>,
    /// Write the IR after each run of this pass, or after all passes, to `NN-PASS.tir`.
    #[arg(long, value_name = "PASS|all")]
    pub dump_after: Option<String>,
    /// Where `--dump-after` writes.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dump_dir: PathBuf,
    /// Write the saturated e-graphs as JSON in the form of egraph-serialize.
    #[arg(long, value_name = "FILE")]
    pub egraph_json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Where to run: `cuda:0` for the first CUDA device. Default: the host.
    #[arg(short, long, value_name = "cuda:N", value_parser = parse_device)]
    pub device: Option<u32>,
    /// Inputs; by default random ones at the sizes of `--dim` (1 for dims that are not named).
    #[arg(short, long = "input", value_name = "FILE.npz|NAME=@FILE.npy")]
    pub inputs: Vec<String>,
    /// Runs before timing starts.
    #[arg(long, default_value_t = 5)]
    pub warmup: usize,
    /// Timed runs.
    #[arg(long, default_value_t = 50, conflicts_with = "duration")]
    pub iters: usize,
    /// Time for this long instead of a number of runs, in seconds (`5s` or `5`).
    #[arg(long, value_parser = parse_seconds)]
    pub duration: Option<f64>,
    /// Threads; 0 means one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Also time these engines, through Python, in the same run and in turns.
    #[arg(long, value_delimiter = ',', value_name = "ENGINE", conflicts_with = "device")]
    pub against: Vec<PeerName>,
    /// The Python interpreter that has the packages of these engines.
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: PathBuf,
    /// What these engines load, where MODEL is compiled already: an `.onnx` file or a Hugging Face folder.
    #[arg(long, value_name = "MODEL")]
    pub peer_model: Option<PathBuf>,
    /// How far their outputs may differ, relative to the largest value; exit 5 beyond. Default: by element type.
    #[arg(long, value_name = "R")]
    pub tolerance: Option<f64>,
    /// Also print time, GFLOP/s and GB/s of each kernel launch.
    #[arg(long)]
    pub profile: bool,
    /// Write one run, launch by launch, in the trace event format of Chrome and Perfetto.
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    /// Write a page with latencies, launches, roofline, memory plan and fusion coverage.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct TuneArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// The file to write. Default: `tuning.json`.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// Runs of each candidate and of the default beside it.
    #[arg(long, default_value_t = 15)]
    pub rounds: usize,
    /// Threads; 0 means one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CompareArgs {
    /// The first model or artefact.
    pub a: PathBuf,
    /// The second model or artefact.
    pub b: PathBuf,
    /// Inputs of both.
    #[arg(short, long = "input", value_name = "FILE.npz|NAME=@FILE.npy", required = true)]
    pub inputs: Vec<String>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub tolerance: Tolerance,
    /// Threads; 0 means one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ReportArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Inputs on which times and errors are measured.
    #[arg(long, value_name = "FILE.npz")]
    pub calib: PathBuf,
    /// Threads; 0 means one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

/// An input of `--set`.
#[derive(Clone, Debug)]
pub struct SetArg {
    pub name: String,
    pub values: Vec<f64>,
}

/// A `--dim` option: a name and its range (`min == max` fixes it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DimArg {
    pub name: String,
    pub min: i64,
    pub max: i64,
}

fn parse_dim(text: &str) -> Result<DimArg, String> {
    let form = || format!("`{text}` is not of the form NAME=N or NAME=LO..HI");
    let (name, value) = text.split_once('=').ok_or_else(form)?;
    let number = |s: &str| s.trim().parse::<i64>().map_err(|_| form());
    let (min, max) = match value.split_once("..") {
        Some((lo, hi)) => (number(lo)?, number(hi)?),
        None => (number(value)?, number(value)?),
    };
    if name.is_empty() || min < 0 || max < min {
        return Err(format!("`{text}` has an empty name or range"));
    }
    Ok(DimArg { name: name.into(), min, max })
}

fn parse_set(text: &str) -> Result<SetArg, String> {
    let form = || format!("`{text}` is not of the form INPUT=N or INPUT=N,N,..");
    // Names of inputs may hold `=`, numbers do not.
    let (name, values) = text.rsplit_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(form)?;
    let number = |v: &str| match v.trim() {
        "true" => Some(1.0),
        "false" => Some(0.0),
        v => v.parse().ok(),
    };
    let values = values.split(',').map(number).collect::<Option<Vec<f64>>>().ok_or_else(form)?;
    Ok(SetArg { name: name.into(), values })
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    text.parse().map_err(|e: transc_codegen::CodegenError| e.to_string())
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let s = text.strip_suffix('s').unwrap_or(text);
    s.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0).ok_or_else(|| format!("`{text}` is not a number of seconds"))
}

fn parse_device(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
    number.ok_or_else(|| format!("`{text}` is not a device; devices are cuda:0, cuda:1, .."))
}
