//! The operations of the tensor IR: one file per op, one line per op in the list below.
//!
//! The list expands to the [`Op`] enum, its mnemonics, printing and parsing of attributes, and dispatch to the op's own
//! type rule ([`OpSpec::infer`]), reference evaluation ([`OpSpec::eval`]) and decomposition ([`OpSpec::decompose`]).

mod attr;
mod error;
mod rules;
mod tome;

pub use attr::{Attr, Real, Shared};
pub use error::TypeError;
pub use rules::{broadcast_dims, window_extent};

use crate::interp::{EvalCx, EvalError, Tensor};
use crate::scalar::Body;
use crate::tensor::{Builder, ConstPool, Value};
use crate::text::{Cursor, ParseError};
use crate::types::{DType, Dim, TensorType};

/// What an op says about itself; see the op files.
pub trait OpSpec: Clone + PartialEq + Eq + std::hash::Hash + std::fmt::Debug {
    /// Types of the results for operands of these types.
    ///
    /// # Errors
    /// If the op does not take them; the message is for the author of the model.
    fn infer(&self, operands: &[&TensorType], consts: &ConstPool) -> Result<Vec<TensorType>, TypeError>;

    /// The reference evaluation.
    ///
    /// # Errors
    /// An index outside its tensor, an integer division by zero, or a dim with no value.
    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError>;

    /// The same computation in simpler ops, for a named op: its meaning and its fallback. `None` for structured ops.
    ///
    /// # Errors
    /// As the builder's.
    fn decompose(&self, _b: &mut Builder<'_>, _operands: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        None
    }
}

/// Declares the attribute struct of an op with its mnemonic.
macro_rules! tensor_op {
    ($(#[$m:meta])* $name:ident = $text:literal { $($(#[$fm:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$m])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name { $($(#[$fm])* pub $field: $ty,)* }

        impl $name {
            /// The name in the text form.
            pub const MNEMONIC: &'static str = $text;

            pub(crate) fn attrs_mut(&mut self) -> Vec<&mut dyn $crate::op::Attr> {
                vec![$(&mut self.$field as &mut dyn $crate::op::Attr,)*]
            }

            pub(crate) fn attrs(&self) -> Vec<(&'static str, &dyn $crate::op::Attr)> {
                vec![$((stringify!($field), &self.$field as &dyn $crate::op::Attr),)*]
            }

            #[allow(unused_variables, unused_mut, reason = "ops without attributes")]
            pub(crate) fn parse(p: &mut $crate::text::Cursor<'_>) -> Result<Self, $crate::text::ParseError> {
                let mut first = true;
                Ok(Self { $($field: {
                    p.attr_name(stringify!($field), &mut first)?;
                    <$ty as $crate::op::Attr>::parse(p)?
                },)* })
            }
        }
    };
}

macro_rules! ops {
    ($($module:ident :: $name:ident,)*) => {
        $(mod $module; pub use $module::*;)*

        /// An operation of the tensor IR with its attributes.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op { $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)* }

        impl Op {
            /// The mnemonics of all ops.
            pub const MNEMONICS: &'static [&'static str] = &[$($name::MNEMONIC,)*];

            /// The name in the text form.
            pub fn mnemonic(&self) -> &'static str {
                match self { $(Op::$name(_) => $name::MNEMONIC,)* }
            }

            /// Attribute names and values, in order of declaration.
            pub fn attrs(&self) -> Vec<(&'static str, &dyn Attr)> {
                match self { $(Op::$name(o) => o.attrs(),)* }
            }

            /// Replaces the dims in the attributes, nested functions included.
            pub fn map_dims(&mut self, map: &dyn Fn(&Dim) -> Dim) {
                let attrs = match self { $(Op::$name(o) => o.attrs_mut(),)* };
                for a in attrs {
                    a.map_dims(map);
                }
            }

            /// Parses the attributes of the op with a mnemonic; `None` for an unknown mnemonic.
            pub fn parse(mnemonic: &str, p: &mut Cursor<'_>) -> Option<Result<Op, ParseError>> {
                match mnemonic { $($name::MNEMONIC => Some($name::parse(p).map(Op::$name)),)* _ => None }
            }

            /// See [`OpSpec::infer`].
            ///
            /// # Errors
            /// If the op does not take operands of these types.
            pub fn infer(&self, operands: &[&TensorType], consts: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
                match self { $(Op::$name(o) => o.infer(operands, consts),)* }
            }

            /// See [`OpSpec::eval`].
            ///
            /// # Errors
            /// If the op has no value for these operands.
            pub fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
                match self { $(Op::$name(o) => o.eval(operands, cx),)* }
            }

            /// See [`OpSpec::decompose`].
            ///
            /// # Errors
            /// As the builder's.
            pub fn decompose(&self, b: &mut Builder<'_>, operands: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
                match self { $(Op::$name(o) => o.decompose(b, operands),)* }
            }
        }

        $(impl From<$name> for Op {
            fn from(o: $name) -> Op { Op::$name(o) }
        })*
    };
}

ops! {
    // Sources
    constant::Constant,
    dims::Dims,
    iota::Iota,
    // Element-wise
    map::Map,
    // Views and data movement
    broadcast::Broadcast,
    reshape::Reshape,
    transpose::Transpose,
    slice::Slice,
    concat::Concat,
    pad::Pad,
    // Indexed access
    gather::Gather,
    gather_elements::GatherElements,
    gather_nd::GatherNd,
    scatter_elements::ScatterElements,
    scatter_nd::ScatterNd,
    // Reductions, contractions, windows
    reduce::Reduce,
    arg_reduce::ArgReduce,
    scan::Scan,
    top_k::TopK,
    contract::Contract,
    window::Window,
    conv::Conv,
    // Named ops
    softmax::Softmax,
    layer_norm::LayerNorm,
    rms_norm::RmsNorm,
    attention::Attention,
    int_attention::IntAttention,
    rope::Rope,
    quantize::Quantize,
    dequantize::Dequantize,
    // Tokens that become one
    token_plan::TokenPlan,
    token_apply::TokenApply,
    token_size::TokenSize,
    token_unmerge::TokenUnmerge,
    // Regions
    fused::Fused,
}

impl Op {
    /// True for a map that converts to a type and does nothing else.
    pub fn casts_to(&self, to: DType) -> bool {
        matches!(self, Op::Map(m) if m.body == Body::cast(to))
    }
}
