//! What goes wrong when a model is read.

use std::fmt;
use std::path::Path;

use transc_ir::diag::{Diagnose, Diagnostic, Fault, Place};

/// One problem of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable code: `T01xx` for files and graphs, `T03xx` for the import of operators, `T02xx` for types.
    pub code: &'static str,
    /// Whose fault it is.
    pub fault: Fault,
    /// One sentence.
    pub message: String,
    /// Path of the node in the model; empty for the file as a whole.
    pub node: String,
    /// Operator and version, such as `Add, opset 17`; may be empty.
    pub op: String,
    /// What the user can do; may be empty.
    pub help: String,
}

impl Problem {
    /// A problem of the file as a whole.
    pub fn new(code: &'static str, fault: Fault, message: impl Into<String>) -> Self {
        Self { code, fault, message: message.into(), node: String::new(), op: String::new(), help: String::new() }
    }

    /// An invalid file.
    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, Fault::Invalid, message)
    }

    /// A limit that was reached.
    pub(crate) fn limit(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, Fault::Limit, message)
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// The same at a node.
    #[must_use]
    pub fn at(mut self, node: impl Into<String>, op: impl Into<String>) -> Self {
        self.node = node.into();
        self.op = op.into();
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if !self.node.is_empty() {
            write!(f, " (node {:?}", self.node)?;
            if !self.op.is_empty() {
                write!(f, ", {}", self.op)?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// A model that could not be read, with every problem that was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct FrontendError {
    /// The file, as the user named it; empty for a model in memory.
    pub file: String,
    /// The problems, in order of discovery; at least one.
    pub problems: Vec<Problem>,
}

impl FrontendError {
    /// An error of one problem.
    pub fn one(file: &Path, problem: Problem) -> Self {
        Self { file: file.display().to_string(), problems: vec![problem] }
    }

    /// The fault that decides the exit code: invalid input before limits before gaps in transc, since only the last kind goes away
    /// with another version of transc.
    pub fn fault(&self) -> Fault {
        let rank = |f: Fault| match f {
            Fault::Bug => 0,
            Fault::Environment => 1,
            Fault::Invalid => 2,
            Fault::Limit => 3,
            Fault::Verify => 4,
            Fault::Unsupported => 5,
        };
        self.problems.iter().map(|p| p.fault).min_by_key(|f| rank(*f)).unwrap_or(Fault::Bug)
    }
}

impl Diagnose for FrontendError {
    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.problems
            .iter()
            .map(|p| Diagnostic {
                code: p.code,
                fault: p.fault,
                message: p.message.clone(),
                place: Some(Place { file: self.file.clone(), node: p.node.clone(), op: p.op.clone() }),
                help: p.help.clone(),
            })
            .collect()
    }
}

/// A name from the file, short and with control characters escaped, in backquotes.
pub(crate) fn quote(name: &str) -> String {
    const SHOWN: usize = 120;
    let mut out = String::from("`");
    for (i, c) in name.chars().enumerate() {
        if i == SHOWN {
            out.push_str("...");
            break;
        }
        // Format characters include the marks that reverse the direction of text.
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if hidden {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('`');
    out
}
