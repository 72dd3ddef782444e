//! The reading position of the parser.

use std::str::FromStr;

use crate::types::Dim;

/// Deepest nesting of functions, lists and expressions.
const MAX_DEPTH: usize = 64;

/// Text that is not of the expected form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Line number, from 1.
    pub line: usize,
    /// What was expected.
    pub message: String,
}

/// A position in the text.
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Cursor<'a> {
    /// The start of a text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// An error at this position.
    pub fn error(&self, message: impl Into<String>) -> ParseError {
        let line = 1 + self.text[..self.at].bytes().filter(|b| *b == b'\n').count();
        ParseError { line, message: message.into() }
    }

    /// Skips blanks and comments (`//` to the end of the line).
    pub fn skip_blank(&mut self) {
        loop {
            let trimmed = self.rest().trim_start();
            self.at = self.text.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// True if nothing but blanks is left.
    pub fn at_end(&mut self) -> bool {
        self.skip_blank();
        self.rest().is_empty()
    }

    /// Takes a token if it is next.
    pub fn eat(&mut self, token: &str) -> bool {
        self.skip_blank();
        let hit = self.rest().starts_with(token);
        if hit {
            self.at += token.len();
        }
        hit
    }

    /// Takes a token.
    ///
    /// # Errors
    /// If something else is next.
    pub fn expect(&mut self, token: &str) -> Result<(), ParseError> {
        if self.eat(token) { Ok(()) } else { Err(self.error(format!("expected `{token}`"))) }
    }

    /// Takes letters, digits, `_` and `.`; may be empty.
    pub fn word(&mut self) -> &'a str {
        self.skip_blank();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Takes an integer.
    ///
    /// # Errors
    /// If none is next, or it does not fit the type.
    pub fn number<T: FromStr>(&mut self) -> Result<T, ParseError> {
        self.skip_blank();
        let rest = self.rest();
        let sign = usize::from(rest.starts_with('-'));
        let end = sign + rest[sign..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - sign);
        let value = rest[..end].parse().map_err(|_| self.error("expected a number"))?;
        self.at += end;
        Ok(value)
    }

    /// Takes a real number: decimal, `inf`, `-inf`, or `nan`.
    ///
    /// # Errors
    /// If none is next.
    pub fn float(&mut self) -> Result<f64, ParseError> {
        self.skip_blank();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'))).unwrap_or(rest.len());
        let value = rest[..end].parse().map_err(|_| self.error("expected a real number"))?;
        self.at += end;
        Ok(value)
    }

    /// Takes a string in double quotes with Rust's escapes.
    ///
    /// # Errors
    /// If none is next, or it does not end.
    pub fn string(&mut self) -> Result<String, ParseError> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some('u') => {
                        let digits: String = chars.by_ref().map(|(_, c)| c).skip(1).take_while(|c| *c != '}').take(8).collect();
                        let c = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                        out.push(c.ok_or_else(|| self.error("expected a code point"))?);
                    }
                    Some(c) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err(self.error("the string does not end"))
    }

    /// Takes `[a, b, ..]`.
    ///
    /// # Errors
    /// If the text is not such a list.
    pub fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, ParseError>) -> Result<Vec<T>, ParseError> {
        self.expect("[")?;
        let mut out = Vec::new();
        if self.eat("]") {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.eat("]") {
                return Ok(out);
            }
            self.expect(",")?;
        }
    }

    /// Runs a parser one level deeper.
    ///
    /// # Errors
    /// If the nesting is too deep, or the parser fails.
    pub fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, ParseError>) -> Result<T, ParseError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        self.depth += 1;
        let out = f(self);
        self.depth -= 1;
        out
    }

    /// Reads `name =`, behind a comma unless it is the first attribute.
    pub(crate) fn attr_name(&mut self, name: &str, first: &mut bool) -> Result<(), ParseError> {
        if !std::mem::replace(first, false) {
            self.expect(",")?;
        }
        self.expect(name)?;
        self.expect("=")
    }

    /// Takes a dim expression as [`Dim`] prints it.
    ///
    /// # Errors
    /// If none is next.
    pub fn dim(&mut self) -> Result<Dim, ParseError> {
        let mut sum = Dim::from(0);
        let mut sign = if self.eat("-") { -1 } else { 1 };
        loop {
            let mut term = self.dim_atom()?;
            while self.eat("*") {
                term = &term * &self.dim_atom()?;
            }
            sum = &sum + &(&term * &Dim::from(sign));
            sign = if self.eat("+") {
                1
            } else if self.eat("-") {
                -1
            } else {
                return Ok(sum);
            };
        }
    }

    fn dim_atom(&mut self) -> Result<Dim, ParseError> {
        self.skip_blank();
        if self.rest().starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(Dim::from(self.number::<i64>()?));
        }
        if self.rest().starts_with('"') {
            return Ok(Dim::sym(&self.string()?));
        }
        let name = self.word();
        if name.is_empty() {
            return Err(self.error("expected a dim"));
        }
        if !matches!(name, "floordiv" | "mod" | "min" | "max") || !self.eat("(") {
            return Ok(Dim::sym(name));
        }
        let (a, b) = self.nested(|p| {
            let a = p.dim()?;
            p.expect(",")?;
            Ok((a, p.dim()?))
        })?;
        self.expect(")")?;
        Ok(match name {
            "floordiv" => a.floor_div(&b),
            "mod" => a.modulo(&b),
            "min" => a.min_with(&b),
            _ => a.max_with(&b),
        })
    }
}
