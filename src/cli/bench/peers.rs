//! Other engines in Python processes of their own, driven line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use clap::ValueEnum;
use serde_json::{Value as Json, json};
use transc::ir::diag::Fault;

use super::super::Failure;

/// What the Python process runs.
const WORKER: &str = include_str!("peers.py");

/// Another engine.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerName {
    /// ONNX Runtime.
    Ort,
    /// OpenVINO.
    Openvino,
    /// DeepSparse, whose package wants an interpreter of its own.
    Deepsparse,
    /// PyTorch, eager.
    Torch,
    /// PyTorch, compiled by Inductor.
    Inductor,
}

impl PeerName {
    fn name(self) -> &'static str {
        match self {
            PeerName::Ort => "ort",
            PeerName::Openvino => "openvino",
            PeerName::Deepsparse => "deepsparse",
            PeerName::Torch => "torch",
            PeerName::Inductor => "inductor",
        }
    }
}

/// What all engines of a run share.
pub struct Setting<'a> {
    /// The interpreter.
    pub python: &'a Path,
    /// ONNX file or Hugging Face folder.
    pub model: &'a Path,
    /// The inputs, an npz file.
    pub inputs: &'a Path,
    /// Where engines may write.
    pub folder: &'a Path,
    /// Threads of each.
    pub threads: usize,
    /// Untimed runs.
    pub warmup: usize,
    /// Element type that products are computed in, as far as an engine can.
    pub dtype: &'static str,
}

/// An engine with its model loaded.
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: String,
    /// Milliseconds of the timed runs.
    pub times: Vec<f64>,
    child: Child,
    /// Closed first: its end tells the process to go.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts an engine; returns when it has loaded the model and run it. Its outputs are in `NAME.npz` of the folder then.
    pub fn start(which: PeerName, s: &Setting<'_>) -> Result<Peer, Failure> {
        let name = which.name();
        let spec = json!({
            "peer": name, "model": s.model, "inputs": s.inputs, "outputs": s.folder.join(format!("{name}.npz")), "folder": s.folder,
            "threads": s.threads, "warmup": s.warmup.max(1), "dtype": s.dtype,
        });
        let spawned = Command::new(s.python)
            .args(["-c", WORKER, &spec.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let help = "name an interpreter with `--python PATH` that has the packages of bench/requirements.txt";
        let mut child = spawned.map_err(|e| {
            Failure::one("T0920", Fault::Environment, format!("`{}` cannot be started: {e}", s.python.display()), help)
        })?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::one("T0920", Fault::Environment, "the interpreter has no pipes", help));
        };
        let mut peer = Peer { name, version: String::new(), times: Vec::new(), child, to: Some(to), from: BufReader::new(from) };
        let hello = peer.answer()?;
        if let Some(package) = hello["missing"].as_str() {
            let message = format!("{name} needs the Python package `{package}`, which `{}` does not have", s.python.display());
            return Err(Failure::one("T0920", Fault::Environment, message, help));
        }
        peer.version = hello["version"].as_str().unwrap_or("?").into();
        Ok(peer)
    }

    /// One timed run.
    pub fn run(&mut self) -> Result<(), Failure> {
        let sent = self.to.as_mut().map_or(Ok(()), |to| to.write_all(b"run\n").and_then(|()| to.flush()));
        sent.map_err(|e| self.failed(&e.to_string()))?;
        let ns = self.answer()?["ns"].as_u64().ok_or_else(|| self.failed("it gave no time"))?;
        self.times.push(ns as f64 / 1e6);
        Ok(())
    }

    fn answer(&mut self) -> Result<Json, Failure> {
        let mut line = String::new();
        let read = self.from.read_line(&mut line);
        read.map_err(|e| self.failed(&e.to_string()))?;
        let answer: Json = serde_json::from_str(&line).map_err(|_| self.failed("it ended without an answer"))?;
        match answer["error"].as_str() {
            Some(why) => Err(self.failed(why)),
            None => Ok(answer),
        }
    }

    fn failed(&self, why: &str) -> Failure {
        let help = "leave it out of `--against`, or give it a file that it takes with `--peer-model`";
        Failure::one("T0921", Fault::Environment, format!("{} cannot run the model: {why}", self.name), help)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.to.take());
        // It may be in the middle of a run that nobody waits for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
