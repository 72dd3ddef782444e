//! CUDA's driver interface (`libcuda.so.1`), loaded when a device is first asked for. A machine without it runs everything else.
//!
//! Names, argument types and numbers are those of the CUDA driver API reference. Every call is made with the context current in the calling
//! thread, and every call is checked.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use libloading::Library;

use crate::Error;

type Status = c_int;
type Handle = *mut c_void;
type Pointer = u64;

// Values of `CUdevice_attribute`, `CUfunction_attribute` and `CUjit_option`.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const MAX_SHARED_OPTIN: c_int = 97;
const FUNCTION_MAX_DYNAMIC_SHARED: c_int = 8;
const JIT_ERROR_LOG: c_int = 5;
const JIT_ERROR_LOG_BYTES: c_int = 6;

/// Shared memory that every kernel may use without asking, in bytes.
const SHARED_BYTES: u32 = 48 * 1024;

fn error(what: impl Into<String>) -> Error {
    Error::Device(what.into())
}

macro_rules! api {
    ($($name:ident($($arg:ty),*);)*) => {
        /// The functions of the driver that this module calls.
        #[expect(non_snake_case, reason = "the driver's names")]
        struct Api {
            $($name: unsafe extern "C" fn($($arg),*) -> Status,)*
            /// Keeps the functions in memory.
            _library: Library,
        }

        impl Api {
            fn load() -> Result<Self, Error> {
                // SAFETY: the initialisers of NVIDIA's driver library may run in any process.
                let library = unsafe { Library::new("libcuda.so.1") };
                let library = library.map_err(|e| error(format!("there is no CUDA driver ({e})")))?;
                // SAFETY: each symbol is the driver function of this name, whose documented C signature the table below states.
                unsafe {
                    Ok(Self {
                        $($name: *library
                            .get(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|e| error(format!("the CUDA driver is too old ({e})")))?,)*
                        _library: library,
                    })
                }
            }
        }
    };
}

api! {
    cuInit(c_uint);
    cuGetErrorString(Status, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxPushCurrent_v2(Handle);
    cuCtxPopCurrent_v2(*mut Handle);
    cuCtxSynchronize();
    cuModuleLoadDataEx(*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuFuncSetAttribute(Handle, c_int, c_int);
    cuMemAlloc_v2(*mut Pointer, usize);
    cuMemFree_v2(Pointer);
    cuMemcpyHtoD_v2(Pointer, *const c_void, usize);
    cuMemcpyDtoH_v2(*mut c_void, Pointer, usize);
    cuMemsetD32_v2(Pointer, c_uint, usize);
    cuLaunchKernel(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
}

impl Api {
    fn check(&self, status: Status, doing: &str) -> Result<(), Error> {
        if status == 0 {
            return Ok(());
        }
        let mut text = ptr::null();
        // SAFETY: `text` receives a pointer to a constant string, or null for a number that the driver does not know.
        let known = unsafe { (self.cuGetErrorString)(status, &raw mut text) };
        let text = if known == 0 && !text.is_null() {
            // SAFETY: the driver's constant, zero-terminated string.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        } else {
            format!("error {status}")
        };
        Err(error(format!("{doing}: {text}")))
    }
}

/// One device with its primary context.
pub(super) struct Context {
    api: Api,
    device: c_int,
    handle: Handle,
}

// SAFETY: the driver's functions may be called from any thread; a context is made current in the calling thread before each use.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// While it lives, the context is current in this thread.
struct Current<'a>(&'a Context);

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        // SAFETY: pops what `Context::enter` pushed in this thread; `popped` receives it.
        let _ = unsafe { (self.0.api.cuCtxPopCurrent_v2)(&raw mut popped) };
    }
}

impl Context {
    /// Opens a device.
    pub(super) fn open(ordinal: u32) -> Result<Arc<Self>, Error> {
        let api = Api::load()?;
        // SAFETY: the one legal value of the flags.
        let status = unsafe { (api.cuInit)(0) };
        api.check(status, "the CUDA driver does not start")?;
        let mut count = 0;
        // SAFETY: `count` receives the number.
        let status = unsafe { (api.cuDeviceGetCount)(&raw mut count) };
        api.check(status, "counting devices")?;
        let ordinal = c_int::try_from(ordinal).ok().filter(|o| *o < count);
        let ordinal = ordinal.ok_or_else(|| error(format!("there is no such CUDA device; this machine has {count}")))?;
        let mut device = 0;
        // SAFETY: the ordinal is below the count; `device` receives the result.
        let status = unsafe { (api.cuDeviceGet)(&raw mut device, ordinal) };
        api.check(status, "opening the device")?;
        let mut handle = ptr::null_mut();
        // SAFETY: a device of this driver; `handle` receives the context, which `drop` releases.
        let status = unsafe { (api.cuDevicePrimaryCtxRetain)(&raw mut handle, device) };
        api.check(status, "opening the device")?;
        Ok(Arc::new(Self { api, device, handle }))
    }

    fn enter(&self) -> Result<Current<'_>, Error> {
        // SAFETY: the context is retained as long as `self` lives; `Current` pops it.
        let status = unsafe { (self.api.cuCtxPushCurrent_v2)(self.handle) };
        self.api.check(status, "using the device")?;
        Ok(Current(self))
    }

    fn attribute(&self, which: c_int) -> Result<c_int, Error> {
        let mut value = 0;
        // SAFETY: `value` receives the attribute of a device of this driver.
        let status = unsafe { (self.api.cuDeviceGetAttribute)(&raw mut value, which, self.device) };
        self.api.check(status, "asking the device")?;
        Ok(value)
    }

    /// Compute capability, major and minor.
    pub(super) fn capability(&self) -> Result<(i32, i32), Error> {
        Ok((self.attribute(CAPABILITY_MAJOR)?, self.attribute(CAPABILITY_MINOR)?))
    }

    /// Waits for everything that was launched.
    pub(super) fn wait(&self) -> Result<(), Error> {
        let _current = self.enter()?;
        // SAFETY: a context is current.
        let status = unsafe { (self.api.cuCtxSynchronize)() };
        self.api.check(status, "running kernels")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; modules and memory hold an `Arc` of this, so none is left.
        let _ = unsafe { (self.api.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// Memory of a device, 256-byte aligned.
pub(super) struct Memory {
    context: Arc<Context>,
    at: Pointer,
    len: usize,
}

impl Memory {
    /// Memory with unspecified contents.
    pub(super) fn new(context: &Arc<Context>, len: usize) -> Result<Self, Error> {
        let mut at = 0;
        if len > 0 {
            let _current = context.enter()?;
            // SAFETY: a context is current; `at` receives the address, which `drop` frees.
            let status = unsafe { (context.api.cuMemAlloc_v2)(&raw mut at, len) };
            // The driver's number for memory that is not to be had.
            if status == 2 {
                return Err(Error::Memory(len));
            }
            context.api.check(status, "allocating memory")?;
        }
        Ok(Self { context: Arc::clone(context), at, len })
    }

    /// Address on the device.
    pub(super) fn address(&self) -> u64 {
        self.at
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes to the start of the memory.
    pub(super) fn upload(&mut self, bytes: &[u8]) -> Result<(), Error> {
        assert!(bytes.len() <= self.len, "a copy beyond the end of device memory");
        if bytes.is_empty() {
            return Ok(());
        }
        let _current = self.context.enter()?;
        // SAFETY: both sides have this many bytes; the call returns when the source is no longer needed.
        let status = unsafe { (self.context.api.cuMemcpyHtoD_v2)(self.at, bytes.as_ptr().cast(), bytes.len()) };
        self.context.api.check(status, "copying to the device")
    }

    /// Copies bytes from the start of the memory, after everything launched before.
    pub(super) fn download(&self, out: &mut [u8]) -> Result<(), Error> {
        assert!(out.len() <= self.len, "a copy beyond the end of device memory");
        if out.is_empty() {
            return Ok(());
        }
        let _current = self.context.enter()?;
        // SAFETY: both sides have this many bytes; the call waits for the launches before it and for the copy.
        let status = unsafe { (self.context.api.cuMemcpyDtoH_v2)(out.as_mut_ptr().cast(), self.at, out.len()) };
        self.context.api.check(status, "copying from the device")
    }

    /// Sets all whole 32-bit words to zero, after everything launched before.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        if self.len < 4 {
            return Ok(());
        }
        let _current = self.context.enter()?;
        // SAFETY: the memory has this many words and is aligned.
        let status = unsafe { (self.context.api.cuMemsetD32_v2)(self.at, 0, self.len / 4) };
        self.context.api.check(status, "clearing memory")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.len > 0
            && let Ok(_current) = self.context.enter()
        {
            // SAFETY: allocated once in `new`; no kernel runs that could use it, since all have been waited for.
            let _ = unsafe { ((self.context.api.cuCtxSynchronize)(), (self.context.api.cuMemFree_v2)(self.at)) };
        }
    }
}

/// A loaded PTX program.
pub(super) struct Program {
    context: Arc<Context>,
    handle: Handle,
    functions: Vec<Handle>,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Program {}

impl Program {
    /// Compiles PTX for the device and finds its entry points.
    pub(super) fn load(context: &Arc<Context>, ptx: &str, entries: &[String]) -> Result<Self, Error> {
        let text = CString::new(ptx).map_err(|_| error("the PTX has a zero byte"))?;
        let mut log = vec![0u8; 4096];
        let mut options = [JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES];
        // The second value is a number in the place of a pointer, as the interface asks for.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(log.len())];
        let mut handle = ptr::null_mut();
        let _current = context.enter()?;
        let api = &context.api;
        // SAFETY: zero-terminated PTX; two options with their values, the log buffer of the stated length among them; `handle` receives the
        // module, which `drop` unloads.
        let status = unsafe {
            (api.cuModuleLoadDataEx)(&raw mut handle, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
        let said = String::from_utf8_lossy(&log[..end]).trim().to_string();
        api.check(status, &if said.is_empty() { "loading the PTX".to_string() } else { format!("loading the PTX ({said})") })?;
        let mut program = Self { context: Arc::clone(context), handle, functions: Vec::with_capacity(entries.len()) };
        for name in entries {
            let symbol = CString::new(name.as_str()).map_err(|_| error("an entry point's name has a zero byte"))?;
            let mut function = ptr::null_mut();
            // SAFETY: a loaded module and a zero-terminated name; `function` receives the result.
            let status = unsafe { (api.cuModuleGetFunction)(&raw mut function, program.handle, symbol.as_ptr()) };
            api.check(status, &format!("looking up `{name}`"))?;
            program.functions.push(function);
        }
        Ok(program)
    }

    /// Allows launches of a kernel with this much shared memory.
    pub(super) fn allow_shared(&self, kernel: usize, bytes: u32) -> Result<(), Error> {
        if bytes <= SHARED_BYTES {
            return Ok(());
        }
        let most = self.context.attribute(MAX_SHARED_OPTIN)?;
        let wanted = c_int::try_from(bytes).ok().filter(|b| *b <= most);
        let wanted =
            wanted.ok_or_else(|| error(format!("a kernel needs {bytes} bytes of shared memory, the device has {most}")))?;
        let _current = self.context.enter()?;
        let api = &self.context.api;
        // SAFETY: a function of a loaded module.
        let status = unsafe { (api.cuFuncSetAttribute)(self.functions[kernel], FUNCTION_MAX_DYNAMIC_SHARED, wanted) };
        api.check(status, "asking for shared memory")
    }

    /// Launches a kernel after everything launched before; does not wait for it. All parameters are 8 bytes: addresses and numbers.
    ///
    /// # Safety
    /// The parameters must be those of the kernel, with addresses of device memory as large as it touches, alive until it has run.
    pub(super) unsafe fn launch(
        &self,
        kernel: usize,
        grid: u32,
        block: u32,
        shared: u32,
        params: &mut [u64],
    ) -> Result<(), Error> {
        let mut pointers: Vec<*mut c_void> = params.iter_mut().map(|p| (&raw mut *p).cast()).collect();
        let _current = self.context.enter()?;
        let (api, function, stream) = (&self.context.api, self.functions[kernel], ptr::null_mut());
        // SAFETY: one pointer per parameter, whose values the driver copies before it returns; the caller vouches for what they mean.
        let status = unsafe {
            (api.cuLaunchKernel)(function, grid, 1, 1, block, 1, 1, shared, stream, pointers.as_mut_ptr(), ptr::null_mut())
        };
        api.check(status, "launching a kernel")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: loaded once in `load`; no kernel of it runs, since all have been waited for.
            let _ = unsafe { ((self.context.api.cuCtxSynchronize)(), (self.context.api.cuModuleUnload)(self.handle)) };
        }
    }
}
