//! Errors of loading and running, with stable codes.

/// Whose fault an error is; the number is the exit code of the command line.
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
    /// A missing file or instruction set.
    Environment = 7,
    /// A bug in transc.
    Bug = 70,
}

/// What goes wrong while loading or running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read, written or loaded.
    #[error("{path}: {message}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        message: String,
    },
    /// Not an artefact of transc.
    #[error("not an artefact of transc: {0}")]
    BadArtefact(String),
    /// Made by a version with another interface.
    #[error("the artefact has interface version {found}, this runtime has {ours}")]
    Version {
        /// Version of the artefact.
        found: u32,
        /// Version of this runtime.
        ours: u32,
    },
    /// A section does not have the bytes that were written.
    #[error("the checksum of section `{0}` is wrong: the file is damaged")]
    Checksum(String),
    /// The plan contradicts itself.
    #[error("the plan is invalid: {0}")]
    BadPlan(String),
    /// The processor lacks an instruction set.
    #[error("the model needs {0}, which this processor does not have")]
    MissingFeature(String),
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
    /// A dim that no input determines.
    #[error("dim `{0}` follows from no input")]
    DimUnbound(String),
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
    #[error("dim arithmetic overflows, or divides by zero")]
    Arithmetic,
    /// A tensor's bytes do not fit its shape.
    #[error("{0}")]
    BadTensor(String),
    /// Memory that is not to be had.
    #[error("{0} bytes of memory cannot be allocated")]
    Memory(usize),
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
            Error::Io { .. } => "R0101",
            Error::BadArtefact(_) => "R0102",
            Error::Version { .. } => "R0103",
            Error::Checksum(_) => "R0104",
            Error::BadPlan(_) => "R0105",
            Error::MissingFeature(_) => "R0106",
            Error::UnknownInput { .. } => "R0201",
            Error::InputCount { .. } => "R0202",
            Error::InputType { .. } => "R0203",
            Error::DimConflict { .. } => "R0204",
            Error::DimRange { .. } => "R0205",
            Error::DimUnbound(_) => "R0206",
            Error::Check { .. } => "R0207",
            Error::Arithmetic => "R0208",
            Error::BadTensor(_) => "R0209",
            Error::Memory(_) => "R0301",
            Error::Kernel { .. } => "R0302",
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Io { .. } | Error::MissingFeature(_) => Fault::Environment,
            Error::Memory(_) => Fault::Limit,
            _ => Fault::Invalid,
        }
    }

    /// What the user can do; may be empty.
    pub fn help(&self) -> &'static str {
        match self {
            Error::Version { .. } => "compile the model again with this version",
            Error::Checksum(_) => "copy or compile the artefact again",
            Error::MissingFeature(_) => "compile again with --target for this processor",
            Error::DimRange { .. } => "compile again with --dim NAME=LO..HI for a wider range",
            _ => "",
        }
    }
}
