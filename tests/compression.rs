//! What codes and zeros cost in accuracy, on trained models and real inputs.

use transc::ir::Module;
use transc::ir::interp::Tensor as Plain;
use transc::passes::{Codes, WeightSpec};
use transc::{Backend, Compiler};

use crate::kit;

/// Sentences on which ranges and outliers are observed.
const CALIBRATION: usize = 24;

fn array<'a>(arrays: &'a [(String, Plain)], name: &str) -> &'a Plain {
    &arrays.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no `{name}`")).1
}

fn spec(codes: Result<Codes, transc::passes::WeightError>) -> WeightSpec {
    WeightSpec { codes: Some(codes.expect("a way")), ..WeightSpec::default() }
}

/// One unit vector per sentence: the mean over its tokens.
fn embeddings(hidden: &Plain, mask: &Plain) -> Vec<Vec<f64>> {
    let [n, seq, width] = hidden.dims[..] else { panic!("hidden states have three axes") };
    let one = |i: usize| {
        let mut mean = vec![0.0; width];
        for t in (0..seq).filter(|t| mask.get_f64(i * seq + t) != 0.0) {
            mean.iter_mut().enumerate().for_each(|(k, m)| *m += hidden.get_f64((i * seq + t) * width + k));
        }
        let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        mean.iter().map(|x| x / norm).collect()
    };
    (0..n).map(one).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The rank of each pair's similarity among all pairs.
fn ranks(e: &[Vec<f64>]) -> Vec<f64> {
    let pairs: Vec<f64> = (0..e.len()).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| dot(&e[i], &e[j])).collect();
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by(|a, b| pairs[*a].total_cmp(&pairs[*b]));
    let mut ranks = vec![0.0; pairs.len()];
    order.iter().enumerate().for_each(|(r, i)| ranks[*i] = r as f64);
    ranks
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = (a.len() - 1) as f64 / 2.0;
    let centred = |v: &[f64]| v.iter().map(|x| x - mean).collect::<Vec<f64>>();
    let (a, b) = (centred(a), centred(b));
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

/// A compiler of compressed weights, with what the arrays hold of the model's inputs to observe.
fn calibrated(module: &Module, arrays: &[(String, Plain)], spec: WeightSpec) -> Compiler {
    let known = arrays.iter().filter(|(n, _)| module.main.params().iter().any(|(p, _)| p == n));
    Compiler::new().weights(spec).calibration(known.map(|(n, t)| (n.clone(), kit::tensor(t))).collect())
}

#[test]
fn embeddings_of_sentences_survive_codes() {
    let Some(model) = kit::minilm() else { return };
    let tokens = kit::npz(&kit::root().join("tests/data/minilm/tokens.npz"));
    let mask = array(&tokens, "attention_mask").clone();
    let module = transc::load(&model).expect("the model imports");
    let embed = |compiler: Compiler| {
        let session = compiler.compile(&module).expect("it compiles").session(2).expect("a session");
        embeddings(array(&kit::run(&session, &tokens).expect("it runs"), "last_hidden_state"), &mask)
    };
    let exact = embed(Compiler::new());
    assert!(exact.len() >= 200, "{} sentences", exact.len());
    let exact_ranks = ranks(&exact);
    let calibration = kit::rows(&tokens, 0..CALIBRATION);
    // The way, and the smallest cosine, mean cosine and rank correlation that it must keep.
    for (name, codes, least) in [
        ("static:minmax,outliers=4", Codes::int8("static:minmax,outliers=4"), [0.99, 0.999, 0.99]),
        ("static:minmax,outliers=4,attention", Codes::int8("static:minmax,outliers=4,attention"), [0.99, 0.998, 0.99]),
        ("llm-int8 6.0", Codes::outliers("6.0"), [0.995, 0.999, 0.999]),
    ] {
        let coded = embed(calibrated(&module, &calibration, spec(codes)));
        let cosines: Vec<f64> = exact.iter().zip(&coded).map(|(a, b)| dot(a, b)).collect();
        let smallest = cosines.iter().copied().fold(f64::INFINITY, f64::min);
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let spearman = correlation(&exact_ranks, &ranks(&coded));
        println!("{name}: cosine at least {smallest:.5}, {mean:.5} in the mean; rank correlation {spearman:.5}");
        for (got, least) in [smallest, mean, spearman].into_iter().zip(least) {
            assert!(got >= least, "{name}: {got} is below {least}");
        }
    }
}

/// The table of `docs/sparsity-and-quantisation.md`: what the digits model gets right.
#[test]
fn digits_survive_codes_and_zeros() {
    let dir = kit::root().join("examples/digits-vit");
    let arrays = kit::npz(&dir.join("heldout.npz"));
    let labels = array(&arrays, "labels");
    let module = transc::load(dir.join("model.onnx")).expect("the example imports");
    let pruned = |pattern: &str| WeightSpec { prune: Some(pattern.parse().expect("a pattern")), ..WeightSpec::default() };
    let ways = [
        ("f32", WeightSpec::default()),
        ("`--int8 dynamic`", spec(Codes::int8("dynamic"))),
        ("`--int8 static`", spec(Codes::int8("static"))),
        ("`--int8 static:attention`", spec(Codes::int8("static:attention"))),
        ("`--llm-int8 6.0`", spec(Codes::outliers("6.0"))),
        ("`--w8`", spec(Ok(Codes::Weights8))),
        ("`--w4 g32`", spec(Codes::weights4("g32"))),
        ("`--sparse prune-unstructured=0.5`", pruned("prune-unstructured=0.5")),
        ("`--sparse prune-unstructured=0.8`", pruned("prune-unstructured=0.8")),
        ("`--sparse prune-4x1=0.5`", pruned("prune-4x1=0.5")),
        ("`--sparse prune-4x1=0.8`", pruned("prune-4x1=0.8")),
    ];
    let docs = std::fs::read_to_string(kit::root().join("docs/sparsity-and-quantisation.md")).expect("the page");
    let images = array(&arrays, "pixel_values").dims[0];
    let calibration = kit::rows(&[("pixel_values".into(), array(&arrays, "pixel_values").clone())], 0..32);
    for (way, spec) in ways {
        let compiled = calibrated(&module, &calibration, spec).opt_level(1).compile(&module).expect("it compiles");
        let out = kit::run(&compiled.session(2).expect("a session"), &arrays).expect("it runs");
        let classes = kit::argmax(&out[0].1);
        let right = (0..images).filter(|i| labels.get_f64(*i) == classes[*i] as f64).count();
        println!("| {way} | {right} |");
        let row = docs.lines().find_map(|l| l.strip_prefix(&format!("| {way} | "))).and_then(|r| r.strip_suffix(" |"));
        let said: usize = row.and_then(|r| r.parse().ok()).unwrap_or_else(|| panic!("the page has no row for {way}: {right}"));
        // Sums of another order on another machine may turn one image.
        assert!(said.abs_diff(right) <= 1, "{way}: {right} right, the page says {said}");
    }
    assert!(docs.contains(&format!("of {images} held-out images")), "the page says how many images there are: {images}");
}

/// A budget leaves layers as they are until it is met; one that cannot be met names the nearest that can.
#[test]
fn budgets_are_met_or_refused() {
    let dir = kit::root().join("examples/digits-vit");
    let (model, calib) = (dir.join("model.onnx").display().to_string(), dir.join("heldout.npz").display().to_string());
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let out = tmp.path().join("m.tsc").display().to_string();
    let compile = |codec: &[&str], budget: &str| {
        let common = ["compile", &model, "-o", &out, "--json", "--calib", &calib, "--backend", "clif", "-O0", "--budget", budget];
        kit::transc(&[&common[..], codec].concat())
    };
    let ledger = |out: &std::process::Output| {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        json["ledger"].as_array().expect("a ledger").clone()
    };
    let all = ledger(&compile(&["--int8", "static"], "max-err=1.0"));
    let error = all[0]["error"].as_f64().expect("an error");
    let fewer = ledger(&compile(&["--int8", "static"], &format!("max-err={}", error / 2.0)));
    assert!(!fewer.is_empty() && fewer.len() < all.len(), "{} of {} layers", fewer.len(), all.len());
    assert!(fewer[0]["error"].as_f64().is_some_and(|e| e <= error / 2.0));
    let refused = compile(&["--w4", "g128"], "max-err=1e-9");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{text}");
    assert!(text.contains("T0517") && text.contains("--budget max-err="), "{text}");
    for wrong in ["max-err=0", "max-err=x", "err=1"] {
        assert_eq!(compile(&["--int8", "static"], wrong).status.code(), Some(4), "{wrong}");
    }
    let no_inputs = kit::transc(&["compile", &model, "-o", &out, "--int8", "dynamic", "--budget", "max-err=1"]);
    assert_eq!(no_inputs.status.code(), Some(4));
    // Inputs of another size, of another type, and of another model.
    let pixels = array(&kit::npz(&dir.join("heldout.npz")), "pixel_values").clone();
    let narrow = Plain { dims: vec![pixels.dims[0] * 2, 1, 32, 16], ..pixels.clone() };
    let integers = Plain { dtype: transc::ir::DType::I32, ..pixels };
    for (name, t) in [("narrow", narrow), ("integers", integers)] {
        let file = tmp.path().join(name);
        std::fs::write(&file, transc_frontend::npz::write([("pixel_values", &t)]).expect("an archive")).expect("a file");
        let unfit = kit::transc(&["compile", &model, "-o", &out, "--int8", "static", "--calib", &file.display().to_string()]);
        let text = String::from_utf8_lossy(&unfit.stderr);
        assert!(unfit.status.code() == Some(4) && text.contains("pixel_values"), "{name}: {text}");
    }
    let other = kit::root().join("tests/data/minilm/tokens.npz").display().to_string();
    let unfit = kit::transc(&["compile", &model, "-o", &out, "--int8", "static", "--calib", &other]);
    assert_eq!(unfit.status.code(), Some(4), "{}", String::from_utf8_lossy(&unfit.stderr));
}

/// `compare` names the layer where a coarser model leaves the original first, `report` shows each layer.
#[test]
fn compare_and_report_name_layers() {
    let dir = kit::root().join("examples/digits-vit");
    let (model, calib) = (dir.join("model.onnx").display().to_string(), dir.join("heldout.npz").display().to_string());
    let common = ["--backend", "clif", "-O0", "--json"];
    let out = kit::transc(&[&["compare", &model, &model, "-i", &calib, "--w4", "g32"][..], &common].concat());
    assert_eq!(out.status.code(), Some(5), "{}", String::from_utf8_lossy(&out.stderr));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let layers = json["layers"].as_array().expect("layers");
    assert!(layers.len() > 8, "{json:#}");
    let at = layers.iter().position(|l| l["node"] == json["first"]).expect("the first is one of them");
    assert!(layers[..at].iter().all(|l| l["error"].as_f64().is_some_and(|e| e <= 1e-4)));
    let out = kit::transc(&[&["compare", &model, &model, "-i", &calib][..], &common].concat());
    assert_eq!(out.status.code(), Some(0), "a model agrees with itself");
    let out = kit::transc(&[&["report", &model, "--calib", &calib, "--int8", "dynamic"][..], &common].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let coded = |l: &&serde_json::Value| l["after"]["kernel"] == "int8" && l["error"].as_f64().is_some_and(|e| e > 0.0);
    let layers = json["layers"].as_array().expect("layers");
    assert!(layers.iter().filter(coded).count() >= 8, "{json:#}");
    // All together: products of one activation may be one before and several after, or the other way round.
    let bytes = |when: &str| layers.iter().filter_map(|l| l[when]["bytes"].as_u64()).sum::<u64>();
    assert!(bytes("after") < bytes("before") * 2 / 3, "{json:#}");
}

/// Cut layers are smaller, write ledger entries with the measured error, and what cannot be cut is refused by its node.
#[test]
fn cut_layers_are_smaller() {
    let dir = kit::root().join("examples/digits-vit");
    let (model, calib) = (dir.join("model.onnx").display().to_string(), dir.join("heldout.npz").display().to_string());
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| tmp.path().join(name).display().to_string();
    let out = file("m.tsc");
    let compile = |options: &[&str]| {
        let common = ["compile", &model, "-o", &out, "--json", "--calib", &calib, "--backend", "clif", "-O0"];
        kit::transc(&[&common[..], options].concat())
    };
    let summary = |options: &[&str]| -> serde_json::Value {
        let out = compile(options);
        assert!(out.status.success(), "{options:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    };
    let size = |v: &serde_json::Value| v["artefact_bytes"].as_u64().expect("a size");
    let whole = size(&summary(&[]));
    for (options, codec) in [
        (&["--mat", "1/2"][..], "matformer"),
        (&["--mat", "l0=1/4,l1=1/2"], "matformer"),
        (&["--prune-structured", "heads=0.5"], "vtrans"),
        (&["--prune-structured", "ffn=0.5,layers=0.25"], "vtrans"),
        (&["--mat", "1/2", "--int8", "dynamic"], "matformer"),
    ] {
        let cut = summary(options);
        let ledger = cut["ledger"].as_array().expect("a ledger");
        assert!(ledger.iter().any(|l| l["codec"] == codec && l["error"].as_f64().is_some_and(|e| e > 0.0)), "{cut:#}");
        assert!(size(&cut) < whole, "{options:?}: {} of {whole} bytes", size(&cut));
    }
    // A mask that drops the first of the hidden units of a layer, as training would write it.
    let masks = |name: &str, tensor: &str, values: &[f32]| {
        let header = serde_json::json!({"__metadata__": {"version": "1", "ln_semantics": "dense_zeros"}, tensor: {"dtype": "F32", "shape": [values.len()], "data_offsets": [0, 4 * values.len()]}});
        let header = header.to_string().into_bytes();
        let data = values.iter().flat_map(|v| v.to_le_bytes());
        let bytes: Vec<u8> = (header.len() as u64).to_le_bytes().into_iter().chain(header.clone()).chain(data).collect();
        std::fs::write(file(name), bytes).expect("a file");
        format!("mask={}", file(name))
    };
    let units = |v: &serde_json::Value| v["ledger"][0]["parameters"].as_str().and_then(|p| p.split(' ').nth(2)?.parse().ok());
    let n: usize = units(&summary(&["--mat", "l0=1"])).expect("a number of units");
    let dropped: Vec<f32> = (0..n).map(|i| f32::from(i > 0)).collect();
    let cut = summary(&["--prune-structured", &masks("a", "layer.0.ffn_units.mask", &dropped)]);
    assert_eq!(cut["ledger"][0]["parameters"], format!("{} of {n} hidden units", n - 1));
    let mut hidden = vec![1.0; 64];
    hidden[5] = 0.0;
    let cut = summary(&["--prune-structured", &masks("h", "hidden.mask", &hidden)]);
    assert_eq!(cut["ledger"][0]["parameters"], "63 of 64 hidden dims");
    assert!(size(&cut) < whole && cut["ledger"][0]["error"].as_f64().is_some_and(|e| e > 0.0 && e < 0.5), "{cut:#}");
    let narrow = masks("n", "hidden.mask", &hidden[1..]);
    let short = masks("b", "layer.0.ffn_units.mask", &dropped[1..]);
    let nan = masks("c", "layer.0.heads.mask", &[f32::NAN]);
    for wrong in [
        ["--mat", "1/7"],
        ["--mat", "nowhere=1/2"],
        ["--mat", "2/1"],
        ["--prune-structured", "tails=0.5"],
        ["--prune-structured", &short],
        ["--prune-structured", &narrow],
        ["--prune-structured", &nan],
    ] {
        let out = compile(&wrong);
        assert_eq!(out.status.code(), Some(4), "{wrong:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// Factorised layers write ledger entries with their errors; what is no factorisation is refused.
#[test]
fn layers_are_factorised() {
    let dir = kit::root().join("examples/digits-vit");
    let (model, calib) = (dir.join("model.onnx").display().to_string(), dir.join("heldout.npz").display().to_string());
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let out = tmp.path().join("m.tsc").display().to_string();
    let compile = |how: &str| {
        kit::transc(&["compile", &model, "-o", &out, "--json", "--calib", &calib, "--backend", "clif", "-O0", "--factorize", how])
    };
    for (how, codecs) in [("dsformer:r=1/4,k=4", &["dsformer", "low-rank"][..]), ("low-rank:r=1/4", &["low-rank"])] {
        let done = compile(how);
        assert!(done.status.success(), "{how}: {}", String::from_utf8_lossy(&done.stderr));
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
        let ledger = json["ledger"].as_array().expect("a ledger");
        assert!(!ledger.is_empty() && ledger.iter().all(|l| codecs.iter().any(|c| l["codec"] == *c)), "{json:#}");
        assert!(ledger[0]["error"].as_f64().is_some_and(|e| e > 0.0 && e < 2.0), "{json:#}");
    }
    for wrong in ["dsformer:r=8", "low-rank", "svd:r=4"] {
        assert_eq!(compile(wrong).status.code(), Some(4), "{wrong}");
    }
}

/// Weights in few bits stay so in the artefact, and give the bits that their decoded numbers give.
#[test]
fn weights_in_few_bits_stay_small() {
    let dir = kit::root().join("examples/digits-vit");
    let module = transc::load(dir.join("model.onnx")).expect("the example imports");
    let arrays = kit::rows(&kit::npz(&dir.join("heldout.npz")), 0..3);
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let written = |compiled: &transc::Compiled| {
        let file = tmp.path().join("m.tsc");
        compiled.write_tsc(&file).expect("an artefact");
        std::fs::metadata(file).expect("there").len() as f64
    };
    for backend in Backend::built() {
        let compiler = Compiler::new().backend(backend).opt_level(1);
        let whole = written(&compiler.compile(&module).expect("it compiles"));
        for (codes, bits, most) in [(Codes::Weights8, 8, 0.75), (Codes::Weights4(32), 4, 0.7)] {
            let compiled = compiler.clone().weights(spec(Ok(codes))).compile(&module).expect("it compiles");
            let layers = compiled.program.layers.iter().filter(|(_, l)| l.bits == bits).count();
            let size = written(&compiled) / whole;
            println!("{backend} {codes:?}: {layers} layers in {bits} bits, {size:.2} of the size in f32");
            assert!(layers >= 8 && size < most, "{layers} layers, {size:.2} of the size");
            // One row decodes in registers, three from scratch memory.
            for rows in [1, 3] {
                let some = kit::rows(&arrays, 0..rows);
                let got = kit::run(&compiled.session(2).expect("a session"), &some).expect("it runs");
                let decoded = transc::ir::interp::eval_module(&compiled.module, &crate::ways::inputs(&compiled.module, &some));
                let worst = kit::difference(&got[0].1, &decoded.expect("the reference")[0], 1e-4, 1e-4);
                assert_eq!(worst, None, "{backend} {codes:?} {rows}");
            }
        }
    }
}
