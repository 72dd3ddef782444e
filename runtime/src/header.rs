//! The C header of a compiled model.

use std::fmt::Write as _;

use crate::abi::{Expr, Plan};

/// The C99 header for a model whose library is called `model_name`: the interface, the model's inputs and outputs as comments, and macros
/// `<MODEL>_INPUT_<i>` and `<MODEL>_OUTPUT_<i>` for their names, with `_DIM_<axis>` for extents that are constant.
pub fn c_header(plan: &Plan, model_name: &str) -> String {
    let prefix = macro_prefix(model_name);
    let mut h = String::new();
    let _ = writeln!(
        h,
        "/* {}, compiled by transc {}. Link the library of the same name.",
        comment(model_name),
        comment(&plan.producer)
    );
    for (title, specs) in [("Inputs", &plan.inputs), ("Outputs", &plan.outputs)] {
        let _ = writeln!(h, " *\n * {title}:");
        for s in specs {
            let _ = writeln!(h, " *   {}: {}", comment(&s.name), comment(&plan.type_text(s)));
        }
    }
    if !plan.symbols.is_empty() {
        let _ = writeln!(h, " *\n * Dims:");
    }
    for s in &plan.symbols {
        let _ = writeln!(h, " *   {} in {}..{}", comment(&s.name), s.min, s.max);
    }
    let _ = write!(h, " */\n#ifndef TRANSC_MODEL_{prefix}_H\n#define TRANSC_MODEL_{prefix}_H\n");
    h.push_str(COMMON);
    for (kind, specs) in [("INPUT", &plan.inputs), ("OUTPUT", &plan.outputs)] {
        for (i, s) in specs.iter().enumerate() {
            let _ = writeln!(h, "#define {prefix}_{kind}_{i} \"{}\"", literal(&s.name));
            for (axis, e) in s.dims.iter().enumerate() {
                if let Expr::Const(v) = e {
                    let _ = writeln!(h, "#define {prefix}_{kind}_{i}_DIM_{axis} {v}");
                }
            }
        }
    }
    let _ = writeln!(h, "\n#endif");
    h
}

/// `digits-vit` as `DIGITS_VIT`; a valid identifier for any name.
fn macro_prefix(name: &str) -> String {
    let upper: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    if upper.starts_with(|c: char| c.is_ascii_alphabetic()) { upper } else { format!("MODEL_{upper}") }
}

/// Text that neither ends a comment nor seems to begin one.
fn comment(s: &str) -> String {
    let s = s.replace("*/", "* /").replace("/*", "/ *");
    s.chars().map(|c| if c.is_control() || c == '\\' { '?' } else { c }).collect()
}

/// Text inside a C string.
fn literal(s: &str) -> String {
    s.bytes()
        .map(|b| match b {
            // The question mark could begin a trigraph.
            b'"' | b'\\' | b'?' => format!("\\{}", b as char),
            0x20..=0x7e => (b as char).to_string(),
            _ => format!("\\{b:03o}"),
        })
        .collect()
}

/// The same for every model, and guarded, so that a program can include the headers of several models.
const COMMON: &str = r#"
#include <stddef.h>
#include <stdint.h>

#ifndef TRANSC_H
#define TRANSC_H
#ifdef __cplusplus
extern "C" {
#endif

/* A loaded model with its threads and memory. Calls on one session from several threads are safe and take turns.
   Every library exports the functions below under the same names: a program that needs several models loads their libraries with dlopen. */
typedef struct transc_session transc_session;

/* Element types, with the numbers of ONNX. */
enum {
    TRANSC_F32 = 1, TRANSC_U8 = 2, TRANSC_I8 = 3, TRANSC_U16 = 4, TRANSC_I16 = 5, TRANSC_I32 = 6, TRANSC_I64 = 7,
    TRANSC_BOOL = 9, TRANSC_F16 = 10, TRANSC_F64 = 11, TRANSC_U32 = 12, TRANSC_U64 = 13, TRANSC_BF16 = 16
};

/* A dense row-major tensor in memory of the caller. */
typedef struct {
    const char *name;
    int32_t dtype;
    int32_t rank;
    const int64_t *dims;
    void *data;
    size_t len_bytes;
} transc_tensor;

/* Functions that return a status give 0, or 2 wrong use, 4 bad input or damaged library, 6 a limit, 7 environment (instruction set,
   memory, threads), 70 a bug in transc; transc_last_error() then says more. */

/* Opens the model of this library. threads: 0 means one per core. */
int32_t transc_open(int32_t threads, transc_session **out);

/* Runs the model. Every input and every output must be given once, in any order; dims of an output are what the caller expects, and are
   checked. Output data is aligned to its element size and overlaps nothing else. */
int32_t transc_run(const transc_session *session, const transc_tensor *inputs, size_t n_inputs, transc_tensor *outputs, size_t n_outputs);

/* Writes the extents of an output for these inputs to dims, which has room for its rank. */
int32_t transc_output_dims(const transc_session *session, const transc_tensor *inputs, size_t n_inputs, int32_t output, int64_t *dims);

/* Inputs and outputs by position; -1 or NULL if there is none. Names live as long as the session. */
int32_t transc_input_count(const transc_session *session);
int32_t transc_output_count(const transc_session *session);
const char *transc_input_name(const transc_session *session, int32_t input);
const char *transc_output_name(const transc_session *session, int32_t output);
int32_t transc_input_dtype(const transc_session *session, int32_t input);
int32_t transc_output_dtype(const transc_session *session, int32_t output);
int32_t transc_input_rank(const transc_session *session, int32_t input);
int32_t transc_output_rank(const transc_session *session, int32_t output);

/* The last error of the calling thread, empty if its last call had none. Valid until its next call. */
const char *transc_last_error(void);

/* Closes a session that no thread uses any more. NULL is ignored. Close all sessions before dlclose. */
void transc_close(transc_session *session);

/* Version of transc. */
const char *transc_version(void);

#ifdef __cplusplus
}
#endif
#endif

"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_cannot_leave_comment_or_string() {
        for s in ["*/ int x; /*", "**//", "/*/", "*\\\n/"] {
            let c = comment(s);
            assert!(!c.contains("*/") && !c.contains("/*") && !c.contains('\n') && !c.contains('\\'), "{c}");
        }
        assert_eq!(literal("a\"\\\n1?"), "a\\\"\\\\\\0121\\?");
        assert_eq!(macro_prefix("digits-vit.v2"), "DIGITS_VIT_V2");
        assert_eq!(macro_prefix("3d"), "MODEL_3D");
        assert_eq!(macro_prefix(""), "MODEL_");
    }
}
