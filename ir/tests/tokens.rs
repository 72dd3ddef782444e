//! Token merging: the method's own examples, and what holds for every plan.

use transc_ir::interp::{Tensor, eval_module};
use transc_ir::op::{OpSpec as _, Planner, TokenPlan};
use transc_ir::tensor::ConstPool;
use transc_ir::text::parse_module;
use transc_ir::{DType, Dim, TensorType};

/// Evaluates nodes `%9..` on the parameters `%0..`; the results are the values named in `returns`.
fn eval(params: &[(&str, Tensor)], nodes: &str, returns: &[u32]) -> Vec<Tensor> {
    let names: Vec<String> = params.iter().enumerate().map(|(i, (n, t))| format!("%{i} \"{n}\": {}", t.ty())).collect();
    let results: Vec<String> = returns.iter().map(|v| format!("%{v} \"r{v}\"")).collect();
    let text =
        format!("module \"t\" {{\n func @\"main\"({}) {{\n{nodes}\nreturn {}\n}}\n}}\n", names.join(", "), results.join(", "));
    let m = parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let inputs: Vec<Tensor> = params.iter().map(|(_, t)| t.clone()).collect();
    eval_module(&m, &inputs).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn ints(t: &Tensor) -> Vec<i64> {
    (0..t.count()).map(|i| t.get_i64(i)).collect()
}

/// Nine tokens on a circle, with values 0, 10, 20, ..
fn circle() -> [(&'static str, Tensor); 3] {
    let degrees = [0.0f32, 10.0, 14.0, 50.0, 90.0, 95.0, 120.0, 170.0, 172.0];
    let metric: Vec<f32> = degrees.iter().flat_map(|t| [t.to_radians().cos(), t.to_radians().sin()]).collect();
    let x: Vec<f32> = (0..9).map(|i| 10.0 * i as f32).collect();
    let ones = Tensor::from_f32(&[1, 9], &[1.0; 9]);
    [("m", Tensor::from_f32(&[1, 9, 2], &metric)), ("s", ones), ("x", Tensor::from_f32(&[1, 9, 1], &x))]
}

#[test]
fn the_examples_of_the_method() {
    for (remove, protect, plan, values, sizes) in [
        (3, 1, vec![0, 2, 2, 3, 4, 4, 1, 5, 5], vec![0.0, 60.0, 15.0, 30.0, 45.0, 75.0], vec![1.0, 1.0, 2.0, 1.0, 2.0, 2.0]),
        (3, 0, vec![0, 2, 2, 3, 4, 4, 1, 5, 5], vec![0.0, 60.0, 15.0, 30.0, 45.0, 75.0], vec![1.0, 1.0, 2.0, 1.0, 2.0, 2.0]),
        (3, 2, vec![0, 1, 2, 3, 4, 4, 4, 5, 5], vec![0.0, 10.0, 20.0, 30.0, 50.0, 75.0], vec![1.0, 1.0, 1.0, 1.0, 3.0, 2.0]),
        (4, 1, vec![0, 1, 1, 2, 3, 3, 3, 4, 4], vec![0.0, 15.0, 30.0, 50.0, 75.0], vec![1.0, 2.0, 1.0, 3.0, 2.0]),
    ] {
        let m = 9 - remove;
        let nodes = format!(
            "%3: i64[1,9] = token_plan(%0, %1) {{planner = tome, remove = {remove}, protect = {protect}}}\n\
             %4: f32[1,{m},1] = token_apply(%2, %3, %1) {{tokens = {m}}}\n\
             %5: f32[1,{m}] = token_size(%3, %1) {{tokens = {m}}}"
        );
        let out = eval(&circle(), &nodes, &[3, 4, 5]);
        assert_eq!(ints(&out[0]), plan, "remove {remove}, protect {protect}");
        assert_eq!(out[1].to_f64(), values);
        assert_eq!(out[2].to_f64(), sizes);
    }
}

/// SplitMix64 (Steele et al. 2014) as floats in [-1, 1).
fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn what_holds_for_every_plan() {
    for seed in 0..200u64 {
        let n = 2 + (seed as usize * 7) % 23;
        let protect = (seed as usize % 4).min(n);
        let remove = ((n - protect) / 2).min(1 + seed as usize % 5);
        if remove == 0 {
            continue;
        }
        let (b, c, m) = (2, 3, n - remove);
        let metric = Tensor::from_f32(&[b, n, 4], &random(seed, b * n * 4));
        let x = Tensor::from_f32(&[b, n, c], &random(seed + 1000, b * n * c));
        let size: Vec<f32> = random(seed + 2000, b * n).iter().map(|v| 1.0 + (v.abs() * 4.0).floor()).collect();
        let size: Vec<f32> = size.iter().enumerate().map(|(i, s)| if i % n < protect { 1.0 } else { *s }).collect();
        let params = [("m", metric), ("s", Tensor::from_f32(&[b, n], &size)), ("x", x.clone())];
        let nodes = format!(
            "%3: i64[{b},{n}] = token_plan(%0, %1) {{planner = tome, remove = {remove}, protect = {protect}}}\n\
             %4: f32[{b},{m},{c}] = token_apply(%2, %3, %1) {{tokens = {m}}}\n\
             %5: f32[{b},{m}] = token_size(%3, %1) {{tokens = {m}}}\n\
             %6: f32[{b},{n},{c}] = token_unmerge(%4, %3) {{batch = 0, axis = 1}}\n\
             %7: f32[{b},{m},{c}] = token_apply(%6, %3, %1) {{tokens = {m}}}"
        );
        let out = eval(&params, &nodes, &[3, 4, 5, 6, 7]);
        let (plan, y, new_size) = (ints(&out[0]), out[1].to_f64(), out[2].to_f64());
        let value = x.to_f64();
        for i in 0..b {
            let total: f64 = new_size[i * m..][..m].iter().sum();
            assert_eq!(total, size[i * n..][..n].iter().map(|s| f64::from(*s)).sum::<f64>(), "sizes are kept");
            let groups = &plan[i * n..][..n];
            assert!((0..m as i64).all(|g| groups.contains(&g)), "every group has a member");
            for j in 0..protect {
                assert_eq!(groups[j], j as i64, "protected tokens stay where they are");
                assert_eq!(groups.iter().filter(|g| **g == j as i64).count(), 1, "and alone");
                assert_eq!(y[(i * m + j) * c..][..c], value[(i * n + j) * c..][..c], "bit for bit");
            }
            for k in 0..c {
                let mass = |v: &[f64], s: &dyn Fn(usize) -> f64, n: usize| {
                    (0..n).map(|j| s(i * n + j) * v[(i * n + j) * c + k]).sum::<f64>()
                };
                let (before, after) = (mass(&value, &|j| f64::from(size[j]), n), mass(&y, &|g| new_size[g], m));
                assert!((before - after).abs() < 1e-5 * (1.0 + before.abs()), "mass {before} became {after}");
                for g in 0..m {
                    let members = (0..n).filter(|j| groups[*j] == g as i64).map(|j| value[(i * n + j) * c + k]);
                    let (lo, hi) = members.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
                    let v = y[(i * m + g) * c + k];
                    assert!(v >= lo - 1e-6 && v <= hi + 1e-6, "a mean lies between its members");
                }
            }
        }
        for (p, q) in y.iter().zip(out[4].to_f64()) {
            assert!((p - q).abs() < 1e-6, "applying the plan to what it un-merged gives it back");
        }
    }
}

#[test]
fn the_length_of_a_token_does_not_matter_and_nan_is_the_least_similar() {
    let plan = |metric: Vec<f32>| {
        let params = [("m", Tensor::from_f32(&[1, 8, 3], &metric)), ("s", Tensor::from_f32(&[1, 8], &[1.0; 8]))];
        ints(&eval(&params, "%2: i64[1,8] = token_plan(%0, %1) {planner = tome, remove = 2, protect = 1}", &[2])[0])
    };
    let metric = random(5, 24);
    let longer = metric.iter().enumerate().map(|(i, v)| v * (1 << (i / 3)) as f32).collect();
    assert_eq!(plan(metric.clone()), plan(longer));
    let mut broken = metric;
    broken[6] = f32::NAN;
    let groups = plan(broken);
    assert!((0..6).all(|g| groups.contains(&g)), "{groups:?}");
    assert_eq!(plan(vec![0.0; 24]), [0, 2, 2, 3, 2, 4, 1, 5], "ties go to the lowest index");
}

#[test]
fn counts_that_do_not_fit_are_type_errors() {
    let (metric, size) = (TensorType::new(DType::F32, dims(&[1, 8, 3])), TensorType::new(DType::F32, dims(&[1, 8])));
    for (remove, protect, good) in [(4, 0, true), (3, 1, true), (4, 1, false), (1, 7, false), (1, 9, false)] {
        let plan = TokenPlan { planner: Planner::Tome, remove, protect };
        assert_eq!(plan.infer(&[&metric, &size], &ConstPool::default()).is_ok(), good, "remove {remove}, protect {protect}");
    }
}

fn dims(d: &[i64]) -> Vec<Dim> {
    d.iter().map(|d| Dim::from(*d)).collect()
}
