//! `transc tune`: measures schedules for the products of a model on this machine.
//!
//! Every product with a constant weight is a problem. A candidate schedule is given to all problems at once; the model is compiled with it and
//! timed launch by launch, in turns with the default, so that each kernel runs with the caches as they are in the model. The best candidate
//! of a problem is chosen if it gains more than the noise, and stays chosen if it does so again in newly built models: where weights lie in
//! memory moves the time of the same code by some percent.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};
use transc::ir::diag::Fault;
use transc::runtime::artefact::write_atomic;
use transc::{Backend, Compiled, Compiler, Session, Target, Tensor};
use transc_codegen::tuning::candidates;
use transc_codegen::{Launch, Tuning};

use super::Failure;
use super::args::TuneArgs;
use super::bench::{inputs_of, writable};
use super::compile::compiler;
use super::report::{Progress, clean};
use super::source;

/// Version of the file.
const SCHEMA: u64 = 1;
/// A schedule must take less than this share of the default's time: less is noise.
const WORTH: f64 = 0.98;
/// Newly built pairs of models that must confirm a choice, in the middle of them.
const PAIRS: usize = 3;

/// A model that runs.
struct Candidate {
    compiled: Compiled,
    session: Session,
}

/// Runs the command.
pub fn run(a: &TuneArgs, quiet: bool) -> Result<(), Failure> {
    let output = a.output.clone().unwrap_or_else(|| "tuning.json".into());
    writable(&output)?;
    let mut progress = Progress::new(quiet);
    progress.phase("import");
    let module = source::load_module(&a.model)?;
    let target = Target::host();
    let plain = compiler(&a.target, None)?.target(target.clone());
    if a.target.target.is_some() || a.target.backend.is_some_and(|b| b != Backend::Llvm) {
        let help = "leave --target and --backend out: what is measured here holds for this processor";
        return Err(Failure::one("T0930", Fault::Invalid, "only code of LLVM for this machine can be tuned", help));
    }
    let build = |tuning: Tuning| -> Result<Candidate, Failure> {
        let compiled = Compiler::target(plain.clone(), target.clone().tuned(tuning)).compile(&module)?;
        let session = compiled.session(a.threads)?;
        Ok(Candidate { compiled, session })
    };
    progress.phase("default");
    let default = build(Tuning::NONE)?;
    let inputs = inputs_of(&default.session, &a.model)?;
    let mut problems: BTreeMap<String, String> = BTreeMap::new();
    for l in &default.compiled.program.launches {
        if let Some(t) = &l.tunable {
            problems.insert(t.problem.clone(), t.schedule.clone());
        }
    }
    // Best schedule of each problem, and its time relative to the default.
    let mut best: BTreeMap<&str, (String, f64)> = BTreeMap::new();
    for candidate in candidates(target.lanes()) {
        if problems.values().all(|d| *d == candidate) {
            continue;
        }
        progress.phase(&candidate);
        let all = problems.keys().map(|p| (p.clone(), candidate.clone()));
        let other = build(tuning(&target, all)?)?;
        let times = [&default, &other].map(|_| Vec::new());
        let times = in_turns([&default, &other], &inputs, a.rounds, times)?;
        for (problem, usual) in &problems {
            let [d, c] = [0, 1].map(|i| time_of(problem, &default.compiled, &times[i]));
            let ratio = c / d.max(1.0);
            if *usual != candidate && ratio < best.get(problem.as_str()).map_or(WORTH, |(_, r)| *r) {
                best.insert(problem, (candidate.clone(), ratio));
            }
        }
    }
    let chosen: Vec<(String, String)> = best.iter().map(|(p, (s, _))| ((*p).to_string(), s.clone())).collect();
    let mut gain = 0.0;
    if !chosen.is_empty() {
        progress.phase("check");
        // Of each pair: by problem the time of the default and of the choice, and the time of all launches of the default.
        let (mut again, mut whole) = (BTreeMap::<&str, Vec<[f64; 2]>>::new(), Vec::new());
        for _ in 0..PAIRS {
            let pair = [build(Tuning::NONE)?, build(tuning(&target, chosen.clone())?)?];
            let times = in_turns([&pair[0], &pair[1]], &inputs, a.rounds, [Vec::new(), Vec::new()])?;
            for p in best.keys() {
                again.entry(p).or_default().push([0, 1].map(|i| time_of(p, &pair[i].compiled, &times[i])));
            }
            whole.push(median(times[0].iter().map(|r| r.iter().sum::<u64>() as f64)));
        }
        let whole = median(whole).max(1.0);
        best.retain(|p, (_, ratio)| {
            *ratio = median(again[p].iter().map(|[d, c]| c / d.max(1.0)));
            let stays = *ratio < WORTH;
            if stays {
                gain += median(again[p].iter().map(|[d, c]| d - c)) / whole;
            }
            stays
        });
    }
    progress.end();
    let rows: Vec<Json> = best
        .iter()
        .map(|(p, (s, r))| json!({ "problem": p, "schedule": s, "default": problems[*p], "relative_time": r }))
        .collect();
    let file = json!({
        "schema_version": SCHEMA, "transc": env!("CARGO_PKG_VERSION"), "target": target.name(), "features": target.features(),
        "model": default.session.plan().name, "threads": default.session.threads(), "problems": problems.len(), "gain": gain, "choices": rows,
    });
    write_atomic(&output, |f| std::io::Write::write_all(f, format!("{file:#}\n").as_bytes())).map_err(transc::Error::from)?;
    if a.json {
        source::print_json(&file);
        return Ok(());
    }
    let mut text = String::new();
    for (problem, (schedule, ratio)) in &best {
        text.push_str(&format!("{problem}: {} -> {schedule}, {:.1} % less time\n", problems[*problem], (1.0 - ratio) * 100.0));
    }
    text.push_str(&format!(
        "{} of {} problems have a better schedule than the default; the model gains {:.1} %\nwrote {}\n",
        best.len(),
        problems.len(),
        gain * 100.0,
        clean(&output.display().to_string())
    ));
    source::print_text(&text);
    Ok(())
}

fn tuning(target: &Target, choices: impl IntoIterator<Item = (String, String)>) -> Result<Tuning, Failure> {
    Tuning::new(target.lanes(), choices).map_err(|(p, s)| bad(&format!("`{}` has no schedule `{}`", clean(&p), clean(&s))))
}

fn bad(what: &str) -> Failure {
    Failure::one("T0931", Fault::Invalid, format!("the tuning file cannot be used: {what}"), "make it again with `transc tune`")
}

/// Nanoseconds of each launch of each run, in turns.
fn in_turns(
    pair: [&Candidate; 2],
    inputs: &[(String, Tensor)],
    rounds: usize,
    mut times: [Vec<Vec<u64>>; 2],
) -> Result<[Vec<Vec<u64>>; 2], Failure> {
    let views: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    for round in 0..rounds.max(1) + 2 {
        for i in [round % 2, 1 - round % 2] {
            let spans = pair[i].session.profile_run(&views).map_err(transc::Error::from)?;
            // The first two rounds warm up.
            if round >= 2 {
                times[i].push(spans.iter().map(|s| s.ns).collect());
            }
        }
    }
    Ok(times)
}

/// Time of all launches of a problem: the sum of their medians.
fn time_of(problem: &str, compiled: &Compiled, runs: &[Vec<u64>]) -> f64 {
    let is_of = |l: &Launch| l.tunable.as_ref().is_some_and(|t| t.problem == problem);
    let launches = compiled.program.launches.iter().enumerate().filter(|(_, l)| is_of(l));
    launches.map(|(i, _)| median(runs.iter().map(|r| r[i] as f64))).sum()
}

fn median(all: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.into_iter().collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

/// The choices of a tuning file, for the targets that it was made for.
pub fn read(path: &Path, targets: Vec<Target>) -> Result<Vec<Target>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::one("T0931", Fault::Environment, format!("`{}` cannot be read: {e}", path.display()), ""))?;
    let file: Json = serde_json::from_str(&text).map_err(|e| bad(&format!("it is not JSON ({e})")))?;
    if file["schema_version"].as_u64() != Some(SCHEMA) {
        return Err(bad("it has another format"));
    }
    let version = file["transc"].as_str().unwrap_or("");
    if version != env!("CARGO_PKG_VERSION") {
        return Err(bad(&format!("it was made by transc {}, this is {}", clean(version), env!("CARGO_PKG_VERSION"))));
    }
    let features: Vec<&str> = file["features"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let choice = |c: &Json| Some((c["problem"].as_str()?.to_string(), c["schedule"].as_str()?.to_string()));
    let choices: Option<Vec<_>> = file["choices"].as_array().and_then(|all| all.iter().map(choice).collect());
    let choices = choices.ok_or_else(|| bad("its choices are incomplete"))?;
    let mut used = false;
    let mut all = Vec::new();
    for t in targets {
        let fits = t.features() == features;
        used |= fits;
        all.push(if fits { t.clone().tuned(tuning(&t, choices.clone())?) } else { t });
    }
    if !used {
        return Err(bad(&format!("it was made for a processor with {}, and no target is one", clean(&features.join(" ")))));
    }
    Ok(all)
}
