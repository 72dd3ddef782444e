//! Buffers, and the record of who touched what.

use super::Place;

/// Memory of a launch. Each byte is known or not.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// The bytes, elements little endian.
    pub data: Vec<u8>,
    /// Which bytes were written; none if all were.
    defined: Option<Vec<bool>>,
}

impl Buffer {
    /// Memory with contents.
    pub fn new(data: Vec<u8>) -> Self {
        Self { data, defined: None }
    }

    /// Memory that nothing wrote yet.
    pub fn undefined(len: usize) -> Self {
        Self { data: vec![0; len], defined: Some(vec![false; len]) }
    }

    /// The first byte that nothing wrote.
    pub fn first_undefined(&self) -> Option<usize> {
        self.defined.as_ref()?.iter().position(|d| !d)
    }

    /// Forgets the contents.
    pub(super) fn forget(&mut self) {
        match &mut self.defined {
            Some(d) => d.fill(false),
            None => self.defined = Some(vec![false; self.data.len()]),
        }
    }

    /// Element `i` of `size` bytes, zero-extended; `None` if it was never written. The caller checked that it is inside.
    pub(super) fn get(&self, i: usize, size: usize) -> Option<u64> {
        if self.defined.as_ref().is_some_and(|d| !d[i * size]) {
            return None;
        }
        let mut b = [0u8; 8];
        b[..size].copy_from_slice(&self.data[i * size..][..size]);
        Some(u64::from_le_bytes(b))
    }

    /// Sets element `i`. The caller checked that it is inside.
    pub(super) fn set(&mut self, i: usize, size: usize, bits: u64) {
        self.data[i * size..][..size].copy_from_slice(&bits.to_le_bytes()[..size]);
        if let Some(d) = &mut self.defined {
            d[i * size..][..size].fill(true);
        }
    }
}

/// No thread, or several.
const NONE: u32 = u32::MAX;
const MANY: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Touch {
    unit: u32,
    epoch: u32,
    thread: u32,
}

/// The last write of an element, and the reads since the barrier before the last of them.
#[derive(Clone, Copy)]
struct Cell {
    write: Touch,
    read: Touch,
}

/// Finds accesses without an order, element by element. Two accesses have one if they are of one thread, or of one unit with a barrier
/// between them.
pub(super) struct Shadow(Vec<Cell>);

impl Shadow {
    /// A record for `len` elements.
    pub(super) fn new(len: usize) -> Self {
        let none = Touch { unit: NONE, epoch: 0, thread: NONE };
        Self(vec![Cell { write: none, read: none }; len])
    }

    /// Notes a read; the error is the write that it conflicts with.
    pub(super) fn read(&mut self, i: usize, at: Place, epoch: u32) -> Result<(), Place> {
        let cell = &mut self.0[i];
        conflict(cell.write, at, epoch)?;
        let r = &mut cell.read;
        let now = Touch { unit: at.unit, epoch, thread: at.thread };
        *r = if r.unit == NONE || r.unit == at.unit && r.epoch < epoch {
            now
        } else if r.unit != at.unit {
            Touch { unit: MANY, ..now }
        } else if r.thread != at.thread {
            Touch { thread: MANY, ..now }
        } else {
            now
        };
        Ok(())
    }

    /// Notes a write; the error is the access that it conflicts with.
    pub(super) fn write(&mut self, i: usize, at: Place, epoch: u32) -> Result<(), Place> {
        let cell = &mut self.0[i];
        conflict(cell.write, at, epoch)?;
        conflict(cell.read, at, epoch)?;
        cell.write = Touch { unit: at.unit, epoch, thread: at.thread };
        Ok(())
    }
}

fn conflict(before: Touch, at: Place, epoch: u32) -> Result<(), Place> {
    let ordered = before.unit == NONE || before.unit == at.unit && (before.epoch < epoch || before.thread == at.thread);
    if ordered { Ok(()) } else { Err(Place { unit: before.unit, thread: before.thread }) }
}
