//! Building functions: types are inferred, provenance is kept.

use std::sync::Arc;

use super::{ConstData, ConstId, ConstPool, Func, Loc, Value};
use crate::op::{self, Op, TypeError};
use crate::scalar::{BinOp, Body, Literal, UnOp};
use crate::types::{DType, Dim, TensorType};

/// Appends nodes to a function. [`Builder::add`] takes any op; the other methods are short forms.
pub struct Builder<'a> {
    /// The function that is being built.
    pub func: &'a mut Func,
    /// The constants of the module.
    pub consts: &'a mut Arc<ConstPool>,
    /// Provenance of the nodes added from now on.
    pub loc: Loc,
}

impl<'a> Builder<'a> {
    /// A builder at the end of `func`.
    pub fn new(func: &'a mut Func, consts: &'a mut Arc<ConstPool>) -> Self {
        Self { func, consts, loc: Loc::unknown() }
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        self.func.ty(v)
    }

    /// Adds a node with all its results.
    ///
    /// # Errors
    /// If the op does not take operands of these types.
    pub fn add_multi(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Vec<Value>, TypeError> {
        let op = op.into();
        let types: Vec<&TensorType> = operands.iter().map(|v| self.func.ty(*v)).collect();
        let results = op.infer(&types, self.consts)?;
        let id = self.func.push_node(op, operands, results, self.loc.clone());
        Ok(self.func.node(id).results.to_vec())
    }

    /// Adds a node with one result.
    ///
    /// # Errors
    /// If the op does not take operands of these types.
    pub fn add(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Value, TypeError> {
        Ok(self.add_multi(op, operands)?[0])
    }

    /// A constant from bytes in the module's pool.
    ///
    /// # Errors
    /// If the id is not of the pool.
    pub fn constant_id(&mut self, id: ConstId) -> Result<Value, TypeError> {
        self.add(op::Constant { id }, &[])
    }

    /// A new constant.
    ///
    /// # Errors
    /// Never, unless the pool is full.
    pub fn constant(&mut self, name: &str, data: ConstData) -> Result<Value, TypeError> {
        let id = Arc::make_mut(self.consts).add(name, data);
        self.constant_id(id)
    }

    /// A rank-0 value of a literal.
    ///
    /// # Errors
    /// Never.
    pub fn scalar(&mut self, v: Literal) -> Result<Value, TypeError> {
        self.add(op::Map { body: Body::constant(v) }, &[])
    }

    /// An element-wise operation on one tensor.
    ///
    /// # Errors
    /// If the op does not take this type.
    pub fn un(&mut self, o: UnOp, a: Value) -> Result<Value, TypeError> {
        self.add(op::Map { body: Body::un(o) }, &[a])
    }

    /// An element-wise operation on two tensors, with broadcasting.
    ///
    /// # Errors
    /// If the types differ or do not broadcast.
    pub fn bin(&mut self, o: BinOp, a: Value, b: Value) -> Result<Value, TypeError> {
        self.add(op::Map { body: Body::bin(o) }, &[a, b])
    }

    /// Element-wise conversion; none is added if the type is already right.
    ///
    /// # Errors
    /// Never.
    pub fn cast(&mut self, to: DType, a: Value) -> Result<Value, TypeError> {
        if self.ty(a).dtype == to { Ok(a) } else { self.add(op::Map { body: Body::cast(to) }, &[a]) }
    }

    /// Element-wise selection with broadcasting.
    ///
    /// # Errors
    /// If the types do not fit.
    pub fn select(&mut self, c: Value, a: Value, b: Value) -> Result<Value, TypeError> {
        self.add(op::Map { body: Body::select() }, &[c, a, b])
    }

    /// Reshape; none is added if the dims are already right.
    ///
    /// # Errors
    /// If the element counts differ.
    pub fn reshape(&mut self, a: Value, dims: impl Into<Vec<Dim>>) -> Result<Value, TypeError> {
        let dims = dims.into();
        if self.ty(a).dims == dims { Ok(a) } else { self.add(op::Reshape { dims }, &[a]) }
    }

    /// Transposition; none is added for the identity.
    ///
    /// # Errors
    /// If `perm` is not a permutation of the axes.
    pub fn transpose(&mut self, a: Value, perm: &[usize]) -> Result<Value, TypeError> {
        if perm.len() == self.ty(a).rank() && perm.iter().enumerate().all(|(i, p)| i == *p) {
            return Ok(a);
        }
        self.add(op::Transpose { perm: perm.to_vec() }, &[a])
    }

    /// Broadcast to dims; none is added if they are already right.
    ///
    /// # Errors
    /// If the dims do not broadcast.
    pub fn broadcast(&mut self, a: Value, dims: impl Into<Vec<Dim>>) -> Result<Value, TypeError> {
        let dims = dims.into();
        if self.ty(a).dims == dims { Ok(a) } else { self.add(op::Broadcast { dims }, &[a]) }
    }
}
