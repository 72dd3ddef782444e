//! The reading position of the parser.

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
}

impl<'a> Cursor<'a> {
    /// The start of a text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// An error at this position.
    pub fn error(&self, message: impl Into<String>) -> ParseError {
        let line = 1 + self.text[..self.at].bytes().filter(|b| *b == b'\n').count();
        ParseError { line, message: message.into() }
    }

    /// Skips blanks and comments (`//` to the end of the line).
    pub fn skip_blank(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// Takes a token if it is next.
    pub fn eat(&mut self, token: &str) -> bool {
        self.skip_blank();
        let hit = self.text[self.at..].starts_with(token);
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

    /// Reads `name =`, behind a comma unless it is the first attribute.
    pub(crate) fn attr_name(&mut self, name: &str, first: &mut bool) -> Result<(), ParseError> {
        if !std::mem::replace(first, false) {
            self.expect(",")?;
        }
        self.expect(name)?;
        self.expect("=")
    }
}
