//! How errors, warnings and progress look on a terminal.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use transc_ir::diag::{Diagnostic, Fault};

const RED: Style = AnsiColor::Red.on_default().bold();
const BLUE: Style = AnsiColor::Blue.on_default().bold();
const BOLD: Style = Style::new().bold();

/// How many problems of one phase are printed.
const MAX_SHOWN: usize = 50;

/// Prints problems to stderr in the form of the guide, most important fault first in the exit code.
pub fn errors(problems: &[Diagnostic]) {
    for d in problems.iter().take(MAX_SHOWN) {
        anstream::eprintln!("{}", render(d));
    }
    if problems.len() > MAX_SHOWN {
        anstream::eprintln!("{BOLD}and {} more problems{BOLD:#}", problems.len() - MAX_SHOWN);
    }
}

/// One problem as text with ANSI styles.
pub fn render(d: &Diagnostic) -> String {
    let mut s = format!("{RED}error[{}]{RED:#}{BOLD}: {}{BOLD:#}", d.code, clean(&d.message));
    if let Some(p) = &d.place {
        let mut at = clean(&p.file);
        if !p.node.is_empty() {
            let _ = write!(at, "{}node \"{}\"", if at.is_empty() { "" } else { " " }, clean(&p.node));
        }
        if !p.op.is_empty() {
            let _ = write!(at, " ({})", clean(&p.op));
        }
        if !at.is_empty() {
            let _ = write!(s, "\n  {BLUE}-->{BLUE:#} {at}");
        }
    }
    let _ = write!(s, "\n   {BLUE}={BLUE:#} fault: {}", fault_text(d.fault));
    if !d.help.is_empty() {
        let _ = write!(s, "\n   {BLUE}={BLUE:#} help: {}", clean(&d.help));
    }
    s
}

fn fault_text(f: Fault) -> &'static str {
    match f {
        Fault::Unsupported => "none: valid, but transc does not support it",
        Fault::Invalid => "the file or the input",
        Fault::Verify => "the outputs differ from what was expected",
        Fault::Limit => "a limit of transc was reached",
        Fault::Environment => "this machine or its files",
        Fault::Bug => "transc: please report it",
    }
}

/// Names from model files may hold anything: control characters and text-direction marks are shown, not obeyed, and long names cut.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(512));
    for c in text.chars().take(400) {
        let direction = matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\n') || direction { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    if text.chars().nth(400).is_some() {
        out.push_str("...");
    }
    out
}

/// Reports the phases of a long command: a bar after half a second on a terminal, one plain line per phase elsewhere.
pub struct Progress {
    quiet: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
    phase: String,
    since: Instant,
    /// Names and durations of the phases that ended.
    pub phases: Vec<(String, Duration)>,
}

impl Progress {
    /// No phase yet.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { quiet, terminal, bar: None, phase: String::new(), since: Instant::now(), phases: Vec::new() }
    }

    /// Ends the current phase and starts another.
    pub fn phase(&mut self, name: &str) {
        self.end();
        self.phase = name.into();
        self.since = Instant::now();
        if !self.quiet && self.terminal {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(name.to_string());
            bar.enable_steady_tick(Duration::from_millis(500));
            self.bar = Some(bar);
        }
    }

    /// Ends the current phase.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.phase.is_empty() {
            return;
        }
        let took = self.since.elapsed();
        let name = std::mem::take(&mut self.phase);
        if !self.quiet && !self.terminal {
            eprintln!("{name}: {:.1} ms", took.as_secs_f64() * 1e3);
        }
        self.phases.push((name, took));
    }
}
