//! Runs: values, threads, memory, errors.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use transc_runtime::{
    DType, Error, Expr, Fault, LaunchSizes, Session, SessionOptions, TempSizes, Tensor, TensorView, TensorViewMut,
};

use crate::kit;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn session(threads: usize) -> Session {
    let model = kit::model(kit::plan()).expect("a valid model");
    Session::new(model, SessionOptions { threads, ..SessionOptions::default() }).expect("a session")
}

#[test]
fn sessions_can_be_shared() {
    fn shareable<T: Send + Sync + Clone + 'static>() {}
    shareable::<Session>();
}

#[test]
fn the_same_values_for_any_number_of_threads() {
    for threads in [1, 2, 3, 4] {
        let session = session(threads);
        assert_eq!(session.threads(), threads);
        for n in [1, 2, 15, 16, 17, 100, 4096, 3] {
            kit::check(&session, n, 0.0);
        }
    }
}

#[test]
fn many_tiny_launches() {
    let mut plan = kit::plan();
    plan.launches = (0..2000).flat_map(|_| kit::plan().launches).collect();
    for launch in plan.launches.iter_mut().step_by(3) {
        launch.cost_ns = Expr::Const(10);
    }
    let model = Arc::new(kit::model(plan).expect("a valid model"));
    for threads in [1, 2, 4] {
        let options = SessionOptions { threads, ..SessionOptions::default() };
        kit::check(&Session::new(Arc::clone(&model), options).expect("a session"), 50, 0.0);
    }
}

#[test]
fn concurrent_runs_do_not_disturb_each_other() {
    let session = session(2);
    let workers: Vec<_> = (1..6)
        .map(|i| {
            let session = session.clone();
            std::thread::spawn(move || (0..200).for_each(|n| kit::check(&session, 1 + (n * i) % 300, 0.0)))
        })
        .collect();
    workers.into_iter().for_each(|w| w.join().expect("no panic"));
}

#[test]
fn run_into_allocates_nothing_at_a_known_size() {
    let session = session(2);
    let (a, b) = kit::inputs(100);
    let (c, d) = kit::inputs(40);
    let mut y = Tensor::zeros(DType::F32, &[100]).expect("memory");
    let mut z = Tensor::zeros(DType::F32, &[40]).expect("memory");
    let mut both = || {
        session.run_into(&[("a", a.view()), ("b", b.view())], &mut [y.view_mut()]).expect("runs");
        session.run_into(&[("a", c.view()), ("b", d.view())], &mut [z.view_mut()]).expect("runs");
    };
    both();
    let before = ALLOCATIONS.get();
    (0..10).for_each(|_| both());
    assert_eq!(ALLOCATIONS.get(), before);
    assert_eq!(y.to_vec::<f32>().expect("f32"), kit::expected(&a.to_vec().expect("f32"), &b.to_vec().expect("f32"), 0.0));
}

#[test]
fn misaligned_inputs_are_copied_and_bad_outputs_refused() {
    let session = session(1);
    let (a, b) = kit::inputs(5);
    let mut shifted = [0u8; 21];
    let at = if shifted.as_ptr().addr().is_multiple_of(4) { 1 } else { 0 };
    shifted[at..at + 20].copy_from_slice(a.bytes());
    let a2 = TensorView::new(DType::F32, &[5], &shifted[at..at + 20]).expect("fits");
    let run = |a| session.run(&[("a", a), ("b", b.view())]).expect("runs").remove(0).1;
    assert_eq!(run(a.view()).bytes(), run(a2).bytes());

    let given = [("a", a.view()), ("b", b.view())];
    let mut data = Tensor::zeros(DType::F32, &[6]).expect("memory");
    assert!(matches!(session.run_into(&given, &mut [data.view_mut()]), Err(Error::OutputBuffer { .. })));
    let mut buffer = TensorViewMut::new(DType::I32, &[5], &mut data.bytes_mut()[..20]).expect("fits");
    assert!(matches!(session.run_into(&given, std::slice::from_mut(&mut buffer)), Err(Error::OutputBuffer { .. })));
    assert!(matches!(session.run_into(&given, &mut []), Err(Error::BadTensor(_))));
}

#[test]
fn more_sizes_than_are_remembered() {
    let session = session(2);
    for round in 0..3 {
        (1..30).for_each(|n| kit::check(&session, n * 7 + round, 0.0));
    }
}

#[test]
fn a_kernel_that_stops_names_the_users_node() {
    let session = session(2);
    let (a, mut b) = kit::inputs(64);
    b.bytes_mut()[63 * 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let e = session.run(&[("a", a.view()), ("b", b.view())]).expect_err("NaN is refused");
    assert_eq!((e.code(), e.fault()), ("R0141", Fault::Invalid));
    assert_eq!(e.to_string(), "node `layer/scale`: an index from the data is out of range");
    kit::check(&session, 64, 0.0);
}

#[test]
fn sizes_and_profiles() {
    let session = session(2);
    let sizes = session.bind(&[("n", 100)]).expect("in range");
    assert_eq!((sizes.plan_bytes, sizes.scratch_bytes), (448, 100));
    assert_eq!((sizes.inputs.clone(), sizes.outputs.clone()), (vec![vec![100]; 2], vec![vec![100]]));
    assert!(matches!(session.bind(&[("n", 5000)]), Err(Error::DimRange { .. })));
    let (a, b) = kit::inputs(100);
    let given = [("a", a.view()), ("b", b.view())];
    assert_eq!(session.bind_inputs(&given).expect("fits"), sizes);
    let profile = session.profile_run(&given).expect("runs");
    assert_eq!(profile.len(), sizes.launches.len());
    assert!(profile[0].start_ns + profile[0].ns <= profile[1].start_ns, "launches follow each other");
    assert_eq!(sizes.launches[1], LaunchSizes { macs: 200, bytes: 1200 });
    assert_eq!(sizes.temps, [TempSizes { offset: 0, len: 400, life: Some((0, 1)) }]);
}

#[test]
fn models_for_other_processors_are_refused() {
    let mut plan = kit::plan();
    plan.features = vec!["sse2".into(), "quantum".into()];
    let e = kit::model(plan).expect_err("no such feature");
    assert_eq!((e.fault(), e.code()), (Fault::Environment, "R0107"));
    assert!(e.to_string().contains("quantum") && !e.to_string().contains("sse2"));
}
