//! The attributes that convolutions and pools share.

use transc_ir::Dim;

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, too_symbolic};

/// Windows over the spatial axes.
pub(super) struct Spatial {
    pub(super) kernel: Vec<i64>,
    pub(super) strides: Vec<i64>,
    pub(super) dilations: Vec<i64>,
    pub(super) lo: Vec<i64>,
    pub(super) hi: Vec<i64>,
}

impl Spatial {
    /// Reads `strides`, `dilations`, `pads` and `auto_pad` for windows of extents `kernel` over axes of extents `dims`.
    pub(super) fn read(cx: &OpCx<'_, '_>, dims: &[Dim], kernel: Vec<i64>) -> Result<Spatial> {
        let n = dims.len();
        if kernel.len() != n || kernel.iter().any(|k| *k <= 0) {
            return invalid(format!("has the kernel {kernel:?} for {n} spatial axes"));
        }
        let strides = cx.int_list_of("strides", n, 1)?;
        let dilations = cx.int_list_of("dilations", n, 1)?;
        if strides.iter().chain(&dilations).any(|s| *s <= 0) {
            return invalid("needs positive strides and dilations");
        }
        let pads = cx.int_list_of("pads", 2 * n, 0)?;
        let mut s = Spatial { kernel, strides, dilations, lo: pads[..n].to_vec(), hi: pads[n..].to_vec() };
        let upper = match cx.text("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" | "" => return Ok(s),
            "VALID" => {
                (s.lo, s.hi) = (vec![0; n], vec![0; n]);
                return Ok(s);
            }
            "SAME_UPPER" => true,
            "SAME_LOWER" => false,
            other => return invalid(format!("has the unknown padding mode `{other}`")),
        };
        for (i, d) in dims.iter().enumerate() {
            let total = match (d.as_const(), s.strides[i]) {
                (_, 1) => s.reach(i) - 1,
                (Some(d), stride) => (((d + stride - 1) / stride - 1) * stride + s.reach(i) - d).max(0),
                (None, _) => return too_symbolic("pads to the same extent with a stride over an axis of symbolic extent"),
            };
            (s.lo[i], s.hi[i]) = if upper { (total / 2, total - total / 2) } else { (total - total / 2, total / 2) };
        }
        Ok(s)
    }

    /// Extent of a window with its gaps.
    pub(super) fn reach(&self, i: usize) -> i64 {
        self.dilations[i].saturating_mul(self.kernel[i] - 1).saturating_add(1)
    }
}
