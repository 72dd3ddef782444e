//! The command line: one file per command.

mod args;
mod bench;
mod compare;
mod compile;
mod doctor;
mod explain;
mod inspect;
mod interrupt;
mod layers;
mod machine;
mod opt;
mod report;
mod run;
mod source;
mod tensors;
mod tune;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use transc::ir::diag::{Diagnose, Diagnostic, Fault, Place};

use args::{Cli, Command};

/// What a command ends with when it does not succeed: the problems to print, and the exit code.
pub struct Failure {
    problems: Vec<Diagnostic>,
    code: u8,
}

impl Failure {
    /// A failure from problems; the exit code is that of the gravest fault, a bug before all others.
    pub fn new(problems: Vec<Diagnostic>) -> Self {
        // Invalid input outranks unsupported features: what is broken cannot be judged for support.
        let rank = |f: Fault| match f {
            Fault::Bug => 5,
            Fault::Environment => 4,
            Fault::Invalid => 3,
            Fault::Limit => 2,
            Fault::Verify => 1,
            Fault::Unsupported => 0,
        };
        let code = problems.iter().map(|d| d.fault).max_by_key(|f| rank(*f)).map_or(1, |f| f as u8);
        Self { problems, code }
    }

    /// One problem that belongs to the command line itself.
    pub fn one(code: &'static str, fault: Fault, message: impl Into<String>, help: &str) -> Self {
        Self::new(vec![Diagnostic { code, fault, message: message.into(), place: None, help: help.into() }])
    }

    /// An exit code whose explanation is already on stdout.
    pub fn silent(fault: Fault) -> Self {
        Self { problems: Vec::new(), code: fault as u8 }
    }

    /// Names the model file in problems that do not name one.
    pub fn in_file(mut self, file: &std::path::Path) -> Self {
        for d in &mut self.problems {
            let place = d.place.get_or_insert_with(Place::default);
            if place.file.is_empty() {
                place.file = file.display().to_string();
            }
        }
        self
    }
}

impl<E: Diagnose> From<E> for Failure {
    fn from(e: E) -> Self {
        Self::new(e.diagnostics())
    }
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    interrupt::install();
    let quiet = cli.quiet;
    let result = match cli.command {
        Command::Compile(a) => compile::run(&a, quiet),
        Command::Run(a) => run::run(&a, quiet),
        Command::Inspect(a) => inspect::run(&a),
        Command::Opt(a) => opt::run(&a),
        Command::Passes { json } => opt::list_passes(json),
        Command::Bench(a) => bench::run(&a, quiet),
        Command::Tune(a) => tune::run(&a, quiet),
        Command::Compare(a) => compare::run(&a, quiet),
        Command::Report(a) => layers::run(&a, quiet),
        Command::Explain { code } => explain::run(&code),
        Command::Doctor { json } => doctor::run(json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "transc", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => {
            report::errors(&f.problems);
            ExitCode::from(f.code)
        }
    }
}
