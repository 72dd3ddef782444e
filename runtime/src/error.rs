//! Errors of loading and running, with stable codes.

/// Whose fault an error is; the number is the exit code of the command line and the status of the C interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Wrong use of the interface.
    Usage = 2,
    /// Valid, but not supported.
    Unsupported = 3,
    /// Invalid input or artefact.
    Invalid = 4,
    /// A check failed.
    Verify = 5,
    /// A limit was reached.
    Limit = 6,
    /// A missing file, instruction set, or other resource of this machine.
    Environment = 7,
    /// A bug in transc.
    Bug = 70,
}

impl Fault {
    /// The exit code.
    pub const fn code(self) -> i32 {
        self as i32
    }
}

/// What goes wrong while loading or running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not an artefact of transc.
    #[error("not an artefact of transc: {0}")]
    NotArtefact(String),
    /// A file cannot be read or written, or the system refuses a resource.
    #[error("{path}: {message}")]
    Io {
        /// The file or resource.
        path: String,
        /// What the system says.
        message: String,
    },
    /// Made by another version.
    #[error("the artefact has {what} version {found}, this runtime reads {ours}")]
    Version {
        /// `container` or `interface`.
        what: &'static str,
        /// Version of the artefact.
        found: u32,
        /// Version of this runtime.
        ours: u32,
    },
    /// An artefact whose parts contradict each other, such as a file that was cut.
    #[error("the artefact is damaged: {0}")]
    Damaged(String),
    /// A section does not have the bytes that were written.
    #[error("the checksum of section `{0}` is wrong: the file is damaged")]
    Checksum(&'static str),
    /// The plan contradicts itself.
    #[error("the plan is invalid: {0}")]
    BadPlan(String),
    /// The processor lacks an instruction set.
    #[error("the model needs {0}, which this processor does not have")]
    MissingFeature(String),
    /// The system's loader refuses the code.
    #[error("the code cannot be loaded: {0}")]
    Loader(String),
    /// A name that is no input of the model.
    #[error("`{name}` is not an input; the inputs are {known}")]
    UnknownInput {
        /// The name.
        name: String,
        /// The inputs.
        known: String,
    },
    /// An input that was not given, or given twice.
    #[error("input `{name}` is {what}; the inputs are {known}")]
    InputCount {
        /// The name.
        name: String,
        /// `missing` or `given twice`.
        what: &'static str,
        /// The inputs.
        known: String,
    },
    /// An input of the wrong type or shape.
    #[error("input `{name}` expects {expected}, got {got}")]
    InputType {
        /// The name.
        name: String,
        /// The type of the model.
        expected: String,
        /// The type given.
        got: String,
    },
    /// A dim with two values.
    #[error("dim `{dim}` is {first} in `{a}` and {second} in `{b}`")]
    DimConflict {
        /// The symbol.
        dim: String,
        /// Its value from the first input.
        first: i64,
        /// The first input.
        a: String,
        /// Its value from the second input.
        second: i64,
        /// The second input.
        b: String,
    },
    /// A dim outside its range.
    #[error("dim `{dim}` is {value}, outside {min}..{max}")]
    DimRange {
        /// The symbol.
        dim: String,
        /// Its value.
        value: i64,
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A dim that nothing determines.
    #[error("dim `{0}` follows from nothing that was given")]
    DimUnbound(String),
    /// A name that is no dim of the model, or is given twice.
    #[error("`{name}` is not a dim, or is given twice; the dims are {known}")]
    UnknownDim {
        /// The name.
        name: String,
        /// The dims.
        known: String,
    },
    /// A condition of the model on its dims.
    #[error("{message}: {lhs} is not {rhs}")]
    Check {
        /// The condition in words.
        message: String,
        /// Left value.
        lhs: i64,
        /// Right value.
        rhs: i64,
    },
    /// Dim arithmetic without a value.
    #[error("the size of a tensor or buffer is negative, overflows, or divides by zero at these dims")]
    Arithmetic,
    /// A tensor's bytes do not fit its shape, or its type is not the one asked for.
    #[error("{0}")]
    BadTensor(String),
    /// An output buffer that does not fit the output.
    #[error("output `{name}` is {expected}; the buffer is {got}")]
    OutputBuffer {
        /// The output.
        name: String,
        /// What the model writes.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A call without its arguments.
    #[error("{0}")]
    Usage(String),
    /// Memory that is not to be had.
    #[error("{0} bytes of memory cannot be allocated")]
    Memory(usize),
    /// A device that is not there, or that refuses.
    #[error("{0}")]
    Device(String),
    /// Code for another kind of machine than the one it was opened on.
    #[error("{0}")]
    WrongDevice(String),
    /// A kernel stopped at bad data.
    #[error("node `{node}`: {what}")]
    Kernel {
        /// The user's node.
        node: String,
        /// What happened.
        what: &'static str,
    },
}

impl Error {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Error::NotArtefact(_) => "R0101",
            Error::Io { .. } => "R0102",
            Error::Version { .. } => "R0103",
            Error::Damaged(_) => "R0104",
            Error::Checksum(_) => "R0105",
            Error::BadPlan(_) => "R0106",
            Error::MissingFeature(_) => "R0107",
            Error::Loader(_) => "R0108",
            Error::UnknownInput { .. } => "R0120",
            Error::InputCount { .. } => "R0121",
            Error::InputType { .. } => "R0122",
            Error::DimConflict { .. } => "R0123",
            Error::DimRange { .. } => "R0124",
            Error::DimUnbound(_) => "R0125",
            Error::UnknownDim { .. } => "R0126",
            Error::Check { .. } => "R0127",
            Error::Arithmetic => "R0128",
            Error::BadTensor(_) => "R0129",
            Error::OutputBuffer { .. } => "R0130",
            Error::Usage(_) => "R0131",
            Error::Memory(_) => "R0140",
            Error::Kernel { .. } => "R0141",
            Error::Device(_) => "R0150",
            Error::WrongDevice(_) => "R0151",
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Io { .. } | Error::MissingFeature(_) | Error::Loader(_) | Error::Device(_) | Error::WrongDevice(_) => {
                Fault::Environment
            }
            Error::Memory(_) => Fault::Limit,
            Error::Usage(_) | Error::UnknownDim { .. } => Fault::Usage,
            _ => Fault::Invalid,
        }
    }

    /// What the user can do; may be empty.
    pub fn help(&self) -> &'static str {
        match self {
            Error::Version { found, ours, .. } if found > ours => {
                "it was made by a newer transc: update this one, or compile the model again with it"
            }
            Error::Version { .. } => "it was made by an older transc: compile the model again",
            Error::Damaged(_) | Error::Checksum(_) => "copy or compile the artefact again",
            Error::MissingFeature(_) => "compile again with --target for this processor",
            Error::Device(_) => "run on the host: leave out -d",
            Error::WrongDevice(_) => "compile again with the --target of this machine, or choose the device with -d",
            Error::InputType { .. } => {
                "give the input in these sizes; a dim stays open that no --dim fixes when the model is compiled"
            }
            Error::DimRange { .. } => "compile again with --dim NAME=LO..HI for a wider range",
            Error::DimUnbound(_) => "give the dim a value, or compile again with --dim NAME=VALUE",
            _ => "",
        }
    }
}
