//! The C interface of a compiled library; the generated header documents it for its users.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi::{DType, ModelDescriptor, TensorSpec};
use crate::load::Model;
use crate::session::{Session, SessionOptions};
use crate::tensor::{TensorView, TensorViewMut};
use crate::{Error, Fault};

unsafe extern "C" {
    /// The model that this library was linked with.
    #[link_name = "transc_model_descriptor"]
    static DESCRIPTOR: ModelDescriptor;
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Largest rank of a tensor; bounds what is read through `dims`.
const MAX_RANK: i32 = 64;

/// `transc_tensor` of the header.
#[repr(C)]
pub struct CTensor {
    name: *const c_char,
    dtype: i32,
    rank: i32,
    dims: *const i64,
    data: *mut c_void,
    len_bytes: usize,
}

/// `transc_session` of the header: a session, and the names that the queries hand out.
pub struct CSession {
    session: Session,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
}

/// Runs `f`, keeps its error for `transc_last_error`, and gives the status.
fn guarded(f: impl FnOnce() -> Result<(), Error>) -> i32 {
    let (status, message) = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => (0, String::new()),
        Ok(Err(e)) if e.help().is_empty() => (e.fault().code(), format!("{}: {e}", e.code())),
        Ok(Err(e)) => (e.fault().code(), format!("{}: {e} ({})", e.code(), e.help())),
        Err(_) => (Fault::Bug.code(), "a bug in transc".into()),
    };
    let message = CString::new(message.replace('\0', "?")).unwrap_or_default();
    // A thread that ends has no last error any more.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = message);
    status
}

fn null(what: &str) -> Error {
    Error::Usage(format!("{what} is a null pointer"))
}

/// # Safety
/// `session` is null or open.
unsafe fn open<'a>(session: *const CSession) -> Result<&'a CSession, Error> {
    // SAFETY: by contract.
    unsafe { session.as_ref() }.ok_or_else(|| null("`session`"))
}

/// Opens the model of this library. `threads`: 0 means one per core.
///
/// # Safety
/// `out` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn transc_open(threads: i32, out: *mut *mut CSession) -> i32 {
    guarded(|| {
        if out.is_null() {
            return Err(null("`out`"));
        }
        let threads = usize::try_from(threads).map_err(|_| Error::Usage(format!("{threads} threads")))?;
        // SAFETY: the compiler linked its descriptor into this library.
        let model = unsafe { Model::from_descriptor(&DESCRIPTOR) }?;
        let session = Session::new(model, SessionOptions { threads, ..SessionOptions::default() })?;
        // A valid plan has no zeros in its names.
        let names = |specs: &[TensorSpec]| specs.iter().map(|s| CString::new(s.name.as_str()).unwrap_or_default()).collect();
        let (inputs, outputs) = (names(session.inputs()), names(session.outputs()));
        // SAFETY: not null; valid by contract.
        unsafe { *out = Box::into_raw(Box::new(CSession { session, inputs, outputs })) };
        Ok(())
    })
}

/// Closes a session; null is ignored.
///
/// # Safety
/// `session` is null, or open and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn transc_close(session: *mut CSession) {
    if !session.is_null() {
        // SAFETY: made by `Box::into_raw` in `transc_open`, by contract not yet freed.
        let session = unsafe { Box::from_raw(session) };
        guarded(|| {
            drop(session);
            Ok(())
        });
    }
}

/// A tensor of the caller. `data` is null only if `len` is 0.
struct Parsed<'a> {
    name: &'a str,
    dtype: DType,
    shape: Vec<usize>,
    data: *mut u8,
    len: usize,
}

/// # Safety
/// `tensors` points to `n` tensors; their names are C strings, `dims` holds `rank` numbers and `data` `len_bytes` bytes, as long as `'a`. Any of
/// these pointers may be null.
unsafe fn parse<'a>(tensors: *const CTensor, n: usize, what: &str) -> Result<Vec<Parsed<'a>>, Error> {
    if n == 0 {
        return Ok(Vec::new());
    }
    if tensors.is_null() {
        return Err(null(what));
    }
    // SAFETY: not null; `n` tensors by contract.
    let tensors = unsafe { std::slice::from_raw_parts(tensors, n) };
    tensors
        .iter()
        .map(|t| {
            if t.name.is_null() {
                return Err(null("a tensor's name"));
            }
            // SAFETY: not null; a C string by contract.
            let name =
                unsafe { CStr::from_ptr(t.name) }.to_str().map_err(|_| Error::Usage("a tensor's name is not UTF-8".into()))?;
            let bad = |what: &str| Error::Usage(format!("tensor `{name}` has {what}"));
            if !(0..=MAX_RANK).contains(&t.rank) || t.dims.is_null() && t.rank != 0 {
                return Err(bad("a bad rank, or no dims"));
            }
            // SAFETY: `rank` numbers by contract, none if it is 0.
            let dims = if t.rank == 0 { &[] } else { unsafe { std::slice::from_raw_parts(t.dims, t.rank as usize) } };
            let shape = dims.iter().map(|d| usize::try_from(*d)).collect::<Result<_, _>>().map_err(|_| bad("a negative dim"))?;
            let dtype = DType::from_number(t.dtype).ok_or_else(|| bad("an unknown dtype"))?;
            if t.data.is_null() && t.len_bytes != 0 || isize::try_from(t.len_bytes).is_err() {
                return Err(bad("no data"));
            }
            Ok(Parsed { name, dtype, shape, data: t.data.cast(), len: t.len_bytes })
        })
        .collect()
}

fn views<'a>(inputs: &'a [Parsed<'a>]) -> Result<Vec<(&'a str, TensorView<'a>)>, Error> {
    let view = |t: &'a Parsed<'a>| {
        // SAFETY: not null; `len` readable bytes by the contract of `parse`.
        let data = if t.len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(t.data, t.len) } };
        Ok((t.name, TensorView::new(t.dtype, &t.shape, data).map_err(|e| Error::BadTensor(format!("input `{}`: {e}", t.name)))?))
    };
    inputs.iter().map(view).collect()
}

/// Runs the model. Tensors are found by name; outputs that are not given are an error.
///
/// # Safety
/// `session` is null or open. `inputs` and `outputs` are arrays of that many tensors whose pointers are null or valid, `data` for `len_bytes`
/// bytes; the memory of outputs overlaps nothing else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn transc_run(
    session: *const CSession,
    inputs: *const CTensor,
    n_inputs: usize,
    outputs: *mut CTensor,
    n_outputs: usize,
) -> i32 {
    guarded(|| {
        // SAFETY: passed on, here and in the next two lines.
        let session = unsafe { &open(session)?.session };
        // SAFETY: as above.
        let inputs = unsafe { parse(inputs, n_inputs, "`inputs`") }?;
        // SAFETY: as above.
        let outputs = unsafe { parse(outputs, n_outputs, "`outputs`") }?;
        if let Some(t) = outputs.iter().find(|t| session.outputs().iter().all(|s| s.name != t.name)) {
            return Err(Error::Usage(format!("`{}` is not an output", t.name)));
        }
        let mut buffers = Vec::with_capacity(outputs.len());
        for spec in session.outputs() {
            let mut hits = outputs.iter().filter(|t| t.name == spec.name);
            let (Some(t), None) = (hits.next(), hits.next()) else {
                return Err(Error::Usage(format!("output `{}` must be given once", spec.name)));
            };
            // SAFETY: not null; `len` writable bytes that overlap nothing by contract, and each output is taken once.
            let data = if t.len == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(t.data, t.len) } };
            let buffer = TensorViewMut::new(t.dtype, &t.shape, data);
            buffers.push(buffer.map_err(|e| Error::BadTensor(format!("output `{}`: {e}", t.name)))?);
        }
        session.run_into(&views(&inputs)?, &mut buffers)
    })
}

/// The extents of an output for these inputs.
///
/// # Safety
/// As for [`transc_run`]; `dims` is null or has room for the output's rank.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn transc_output_dims(
    session: *const CSession,
    inputs: *const CTensor,
    n_inputs: usize,
    output: i32,
    dims: *mut i64,
) -> i32 {
    guarded(|| {
        // SAFETY: passed on, here and in the next line.
        let session = unsafe { &open(session)?.session };
        // SAFETY: as above.
        let inputs = unsafe { parse(inputs, n_inputs, "`inputs`") }?;
        let sizes = session.bind_inputs(&views(&inputs)?)?;
        let shape = usize::try_from(output).ok().and_then(|i| sizes.outputs.get(i));
        let shape = shape.ok_or_else(|| Error::Usage(format!("there is no output {output}")))?;
        if dims.is_null() && !shape.is_empty() {
            return Err(null("`dims`"));
        }
        for (i, d) in shape.iter().enumerate() {
            // SAFETY: not null; room for the rank by contract.
            unsafe { *dims.add(i) = *d as i64 };
        }
        Ok(())
    })
}

/// What a query asks for.
fn spec(specs: &[TensorSpec], index: i32) -> Option<&TensorSpec> {
    usize::try_from(index).ok().and_then(|i| specs.get(i))
}

fn name(names: &[CString], index: i32) -> *const c_char {
    usize::try_from(index).ok().and_then(|i| names.get(i)).map_or(std::ptr::null(), |n| n.as_ptr())
}

/// Two sets of the same queries, for inputs and outputs: null sessions and unknown positions give -1 or null.
macro_rules! queries {
    ($what:literal, $field:ident: $count:ident $name:ident $dtype:ident $rank:ident) => {
        #[doc = concat!("Number of ", $what, "s, or -1.")]
        /// # Safety
        /// `session` is null or open.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $count(session: *const CSession) -> i32 {
            // SAFETY: passed on.
            unsafe { open(session) }.map_or(-1, |s| s.$field.len() as i32)
        }

        #[doc = concat!("Name of an ", $what, ", or null. Lives as long as the session.")]
        /// # Safety
        /// `session` is null or open.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(session: *const CSession, index: i32) -> *const c_char {
            // SAFETY: passed on.
            unsafe { open(session) }.map_or(std::ptr::null(), |s| name(&s.$field, index))
        }

        #[doc = concat!("Element type of an ", $what, ", or -1.")]
        /// # Safety
        /// `session` is null or open.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $dtype(session: *const CSession, index: i32) -> i32 {
            // SAFETY: passed on.
            unsafe { open(session) }.ok().and_then(|s| spec(s.session.$field(), index)).map_or(-1, |t| t.dtype.number())
        }

        #[doc = concat!("Rank of an ", $what, ", or -1.")]
        /// # Safety
        /// `session` is null or open.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $rank(session: *const CSession, index: i32) -> i32 {
            // SAFETY: passed on.
            unsafe { open(session) }.ok().and_then(|s| spec(s.session.$field(), index)).map_or(-1, |t| t.dims.len() as i32)
        }
    };
}

queries!("input", inputs: transc_input_count transc_input_name transc_input_dtype transc_input_rank);
queries!("output", outputs: transc_output_count transc_output_name transc_output_dtype transc_output_rank);

/// The last error of the calling thread; empty if its last call had none.
#[unsafe(no_mangle)]
pub extern "C" fn transc_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Version of transc.
#[unsafe(no_mangle)]
pub extern "C" fn transc_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
