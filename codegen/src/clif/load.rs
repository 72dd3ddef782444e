//! Loading machine code into this process. The only unsafe code of this backend.

use std::collections::BTreeMap;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use transc_runtime::abi::{KernelFn, Plan};
use transc_runtime::{Model, Weights};

use super::{ALIGN, Function};
use crate::CodegenError;

/// Declares functions of the C library and a table of their addresses.
macro_rules! c_library {
    ($($name:ident($($arg:ident),*): $t:ty;)*) => {
        #[link(name = "m")]
        unsafe extern "C" {
            $(fn $name($($arg: $t),*) -> $t;)*
        }

        /// The address of a function that kernels may call.
        fn address(name: &str) -> Option<usize> {
            match name { $(stringify!($name) => Some($name as *const () as usize),)* _ => None }
        }
    };
}

c_library! {
    exp(x): f64; log(x): f64; erf(x): f64; tanh(x): f64; sin(x): f64; cos(x): f64; tan(x): f64; asin(x): f64; acos(x): f64; atan(x): f64;
    sinh(x): f64; cosh(x): f64; asinh(x): f64; acosh(x): f64; atanh(x): f64; log1p(x): f64; fmod(x, y): f64; pow(x, y): f64; atan2(x, y): f64;
    expf(x): f32; logf(x): f32; erff(x): f32; tanhf(x): f32; sinf(x): f32; cosf(x): f32; tanf(x): f32; asinf(x): f32; acosf(x): f32; atanf(x): f32;
    sinhf(x): f32; coshf(x): f32; asinhf(x): f32; acoshf(x): f32; atanhf(x): f32; log1pf(x): f32; fmodf(x, y): f32; powf(x, y): f32;
    atan2f(x, y): f32;
}

/// A model whose kernels are these functions.
pub(super) fn model(plan: Plan, functions: &[Function], weights: Weights) -> Result<Model, CodegenError> {
    let error = |message: String| CodegenError::Backend { kernel: String::new(), message };
    let (code, offsets) = place(functions).map_err(error)?;
    let kernels = offsets
        .iter()
        // SAFETY: at the offset stands a kernel that the emitter gave exactly this signature.
        .map(|at| unsafe { std::mem::transmute::<*const u8, KernelFn>(code[*at..].as_ptr()) })
        .collect();
    // SAFETY: plan and kernels come from one program: the emitter keeps the contract for the plan's buffers. `code` keeps the kernels valid.
    Ok(unsafe { Model::from_parts(plan, kernels, weights, Arc::new(code)) }?)
}

/// Executable memory with all functions, and where each one begins. Behind them stands the address of each import once.
fn place(functions: &[Function]) -> Result<(Mmap, Vec<usize>), String> {
    let mut len = 0;
    let offsets: Vec<usize> = functions
        .iter()
        .map(|f| {
            let at = len;
            len = (at + f.code.len()).next_multiple_of(ALIGN);
            at
        })
        .collect();
    let mut slots = BTreeMap::new();
    for name in functions.iter().flat_map(|f| &f.imports) {
        slots.entry(name.as_str()).or_insert_with(|| {
            len += 8;
            len - 8
        });
    }
    let mut memory = MmapMut::map_anon(len.max(1)).map_err(|e| e.to_string())?;
    for (name, at) in &slots {
        let address = address(name).ok_or_else(|| format!("`{name}` is not a function that kernels may call"))?;
        memory[*at..at + 8].copy_from_slice(&address.to_le_bytes());
    }
    for (f, start) in functions.iter().zip(&offsets) {
        memory[*start..start + f.code.len()].copy_from_slice(&f.code);
        for c in &f.calls {
            let place = start + c.offset as usize;
            let distance = slots[f.imports[c.import].as_str()] as i64 + c.addend - place as i64;
            let distance = i32::try_from(distance).map_err(|e| e.to_string())?;
            memory[place..place + 4].copy_from_slice(&distance.to_le_bytes());
        }
    }
    Ok((memory.make_exec().map_err(|e| e.to_string())?, offsets))
}
