//! The C interface of a compiled library; see the generated header.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi::{DType, ModelDescriptor};
use crate::load::Model;
use crate::session::{OutputSlot, Session, SessionOptions};
use crate::tensor::TensorView;
use crate::{Error, Fault};

unsafe extern "C" {
    /// The model that this library was linked with.
    #[link_name = "transc_model_descriptor"]
    static DESCRIPTOR: ModelDescriptor;
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

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

/// Runs `f`, keeps its error for `transc_last_error`, and gives the status.
fn guarded(f: impl FnOnce() -> Result<(), Error>) -> i32 {
    let (status, message) = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => (0, String::new()),
        Ok(Err(e)) => (e.fault() as i32, format!("{}: {e}", e.code())),
        Err(_) => (Fault::Bug as i32, "a bug in transc".into()),
    };
    LAST.with(|l| *l.borrow_mut() = CString::new(message.replace('\0', "?")).unwrap_or_default());
    status
}

fn null(what: &str) -> Error {
    Error::BadTensor(format!("{what} is a null pointer"))
}

/// Opens the model of this library.
///
/// # Safety
/// `out` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn transc_open(threads: i32, out: *mut *mut Session) -> i32 {
    guarded(|| {
        if out.is_null() {
            return Err(null("`out`"));
        }
        // SAFETY: the compiler linked a descriptor into this library.
        let model = unsafe { Model::from_descriptor(&DESCRIPTOR) }?;
        let session = Session::new(model, SessionOptions { threads: usize::try_from(threads).unwrap_or(0) })?;
        // SAFETY: not null; valid by contract.
        unsafe { *out = Box::into_raw(Box::new(session)) };
        Ok(())
    })
}

/// Closes a session; null is ignored.
///
/// # Safety
/// `session` is null or came from [`transc_open`] and was not closed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn transc_close(session: *mut Session) {
    if !session.is_null() {
        // SAFETY: made by `Box::into_raw` in `transc_open`, by contract not yet freed.
        drop(unsafe { Box::from_raw(session) });
    }
}

struct Parsed<'a> {
    name: &'a str,
    dtype: DType,
    shape: Vec<usize>,
    data: *mut u8,
    len: usize,
}

/// # Safety
/// `t`'s pointers are null or valid for what the header says.
unsafe fn parse(t: &CTensor) -> Result<Parsed<'_>, Error> {
    if t.name.is_null() || (t.dims.is_null() && t.rank != 0) || (t.data.is_null() && t.len_bytes != 0) {
        return Err(null("a name, dims or data"));
    }
    // SAFETY: not null; a C string by contract.
    let name = unsafe { CStr::from_ptr(t.name) }.to_str().map_err(|_| Error::BadTensor("a name is not UTF-8".into()))?;
    let rank = usize::try_from(t.rank).ok().filter(|r| *r <= 64).ok_or_else(|| Error::BadTensor(format!("`{name}` has rank {}", t.rank)))?;
    // SAFETY: `rank` dims by contract.
    let dims = if rank == 0 { &[] } else { unsafe { std::slice::from_raw_parts(t.dims, rank) } };
    let shape = dims.iter().map(|d| usize::try_from(*d)).collect::<Result<_, _>>();
    let shape = shape.map_err(|_| Error::BadTensor(format!("`{name}` has a negative dim")))?;
    let dtype = DType::from_number(t.dtype).ok_or_else(|| Error::BadTensor(format!("`{name}` has unknown dtype {}", t.dtype)))?;
    Ok(Parsed { name, dtype, shape, data: t.data.cast(), len: t.len_bytes })
}

/// Runs the model.
///
/// # Safety
/// `session` is open; `inputs` and `outputs` are arrays of that many tensors whose pointers are valid; output memory overlaps nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn transc_run(
    session: *mut Session,
    inputs: *const CTensor,
    n_inputs: usize,
    outputs: *mut CTensor,
    n_outputs: usize,
) -> i32 {
    guarded(|| {
        if session.is_null() || (inputs.is_null() && n_inputs > 0) || (outputs.is_null() && n_outputs > 0) {
            return Err(null("an argument"));
        }
        // SAFETY: not null; open by contract.
        let session = unsafe { &*session };
        let parse_all = |ptr: *const CTensor, n: usize| -> Result<Vec<Parsed<'_>>, Error> {
            // SAFETY: `n` tensors by contract; each is checked on its own.
            (0..n).map(|i| unsafe { parse(&*ptr.add(i)) }).collect()
        };
        let given = parse_all(inputs, n_inputs)?;
        let wanted = parse_all(outputs.cast_const(), n_outputs)?;
        let mut views = Vec::with_capacity(given.len());
        for t in &given {
            // SAFETY: `len` readable bytes by contract.
            let data = if t.len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(t.data, t.len) } };
            views.push((t.name, TensorView::new(t.dtype, &t.shape, data)?));
        }
        let mut slots = Vec::with_capacity(wanted.len());
        for spec in session.outputs() {
            let t = wanted.iter().find(|t| t.name == spec.name);
            let t = t.ok_or_else(|| Error::BadTensor(format!("output `{}` has no buffer", spec.name)))?;
            if t.dtype.number() != spec.dtype.number() {
                return Err(Error::BadTensor(format!("output `{}` is {}, the buffer {}", spec.name, spec.dtype.name(), t.dtype.name())));
            }
            // SAFETY: `len` writable bytes that overlap nothing, by contract.
            let data = if t.len == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(t.data, t.len) } };
            slots.push(OutputSlot { shape: &t.shape, data });
        }
        session.run_into(&views, &mut slots)
    })
}

/// The last error of the calling thread.
#[unsafe(no_mangle)]
pub extern "C" fn transc_last_error() -> *const c_char {
    LAST.with(|l| l.borrow().as_ptr())
}

/// Version of transc.
#[unsafe(no_mangle)]
pub extern "C" fn transc_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
