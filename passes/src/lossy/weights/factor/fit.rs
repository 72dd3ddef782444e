//! Fitting two factors to a matrix.

/// Sweeps over both factors at most.
const SWEEPS: usize = 20;
/// A sweep that lowers the error by a smaller share is the last one.
const PROGRESS: f64 = 1e-3;
/// Exchanges of a column of the basis at most.
const EXCHANGES: usize = 4;
/// Rounds of subspace iteration.
const ROUNDS: usize = 12;

/// A row-major matrix.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    rows: usize,
    columns: usize,
    data: Vec<f64>,
}

impl Dense {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, data: vec![0.0; rows * columns] }
    }

    pub(super) fn from_fn(rows: usize, columns: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        let data = (0..rows * columns).map(|i| f(i / columns, i % columns)).collect();
        Self { rows, columns, data }
    }

    pub(super) fn at(&self, row: usize, column: usize) -> f64 {
        self.data[row * self.columns + column]
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }

    fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.data[i * self.columns..(i + 1) * self.columns]
    }

    fn transposed(&self) -> Dense {
        Dense::from_fn(self.columns, self.rows, |i, j| self.at(j, i))
    }

    pub(super) fn times(&self, o: &Dense) -> Dense {
        let mut out = Dense::zeros(self.rows, o.columns);
        for i in 0..self.rows {
            for (k, x) in self.row(i).iter().enumerate().filter(|(_, x)| **x != 0.0) {
                add_scaled(out.row_mut(i), *x, o.row(k));
            }
        }
        out
    }

    pub(super) fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|v| *v as f32).collect()
    }

    fn square(&self) -> f64 {
        dot(&self.data, &self.data)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add_scaled(to: &mut [f64], by: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += by * f);
}

/// `d * s`.
pub(super) struct Factors {
    pub(super) d: Dense,
    pub(super) s: Dense,
}

impl Factors {
    /// The square error.
    pub(super) fn error(&self, w: &Dense) -> f64 {
        let product = self.d.times(&self.s);
        product.data.iter().zip(&w.data).map(|(p, w)| (p - w) * (p - w)).sum()
    }
}

/// The directions of some columns, each far from those before it; of equals the first.
fn directions(columns: &Dense, count: usize) -> Dense {
    let norms: Vec<f64> = (0..columns.rows).map(|i| dot(columns.row(i), columns.row(i)).sqrt()).collect();
    let mut chosen = Dense::zeros(count, columns.columns);
    // What of each column no direction so far shows.
    let mut left: Vec<f64> = norms.clone();
    for t in 0..count {
        let far = (0..left.len()).fold(0, |best, i| if left[i] > left[best] { i } else { best });
        if norms[far] == 0.0 || left[far] <= 0.0 {
            // Nothing is left: any unit vector will do.
            chosen.row_mut(t)[t % columns.columns] = 1.0;
            continue;
        }
        let scale = norms[far].recip();
        chosen.row_mut(t).iter_mut().zip(columns.row(far)).for_each(|(c, v)| *c = v * scale);
        for (i, l) in left.iter_mut().enumerate() {
            let along = dot(columns.row(i), chosen.row(t));
            *l = l.min((norms[i] * norms[i] - along * along).max(0.0).sqrt());
        }
        left[far] = 0.0;
    }
    chosen
}

/// The nearest product of a rank, by subspace iteration on `W W^T` (Halko et al. 2011).
pub(super) fn low_rank(w: &Dense, rank: usize) -> Factors {
    let columns = w.transposed();
    let mut basis = directions(&columns, rank);
    orthonormal(&mut basis);
    for _ in 0..ROUNDS {
        // Rows of the basis times W, then back.
        let across = basis.times(w);
        basis = across.times(&columns);
        orthonormal(&mut basis);
    }
    let s = basis.times(w);
    Factors { d: basis.transposed(), s }
}

/// Rows by modified Gram and Schmidt, twice; what depends on others becomes 0.
fn orthonormal(m: &mut Dense) {
    for i in 0..m.rows {
        let before = dot(m.row(i), m.row(i)).sqrt();
        for _ in 0..2 {
            for j in 0..i {
                let (done, rest) = m.data.split_at_mut(i * m.columns);
                let (other, own) = (&done[j * m.columns..(j + 1) * m.columns], &mut rest[..m.columns]);
                let along = dot(own, other);
                add_scaled(own, -along, other);
            }
        }
        let norm = dot(m.row(i), m.row(i)).sqrt();
        let scale = if norm > 1e-12 * before { norm.recip() } else { 0.0 };
        m.row_mut(i).iter_mut().for_each(|v| *v *= scale);
    }
}

/// A column of the second factor: its rows, ascending, and their numbers.
type Sparse = Vec<(usize, f64)>;

/// `r` columns, of which each output takes `kept`, spread evenly over blocks.
pub(super) fn dense_sparse(w: &Dense, r: usize, kept: usize, block: usize) -> Factors {
    let columns = w.transposed();
    let mut best = (directions(&columns, r), vec![Vec::new(); w.columns]);
    let mut least = sweeps(&columns, &mut best.0, &mut best.1, kept, block);
    // Where two columns share the work of one, another is missing.
    for _ in 0..EXCHANGES {
        let (mut basis, mut s) = best.clone();
        exchange(&columns, &mut basis, &s);
        let error = sweeps(&columns, &mut basis, &mut s, kept, block);
        if error >= least * (1.0 - PROGRESS) {
            break;
        }
        (best, least) = ((basis, s), error);
    }
    let (basis, s) = best;
    let mut second = Dense::zeros(r, w.columns);
    for (o, column) in s.iter().enumerate() {
        column.iter().for_each(|(t, v)| second.row_mut(*t)[o] = *v);
    }
    Factors { d: basis.transposed(), s: second }
}

/// Fits both in turns until that hardly helps, and gives the square error.
fn sweeps(columns: &Dense, basis: &mut Dense, s: &mut [Sparse], kept: usize, block: usize) -> f64 {
    let mut last = select(columns, basis, s, kept, block);
    let tiny = columns.square() * 1e-14;
    for _ in 0..SWEEPS {
        refit(columns, basis, s);
        let error = select(columns, basis, s, kept, block);
        let progress = last - error;
        last = error;
        if error <= tiny || progress < PROGRESS * error {
            break;
        }
    }
    last
}

/// The column that gives least becomes what is left of the output that is farthest off.
fn exchange(columns: &Dense, basis: &mut Dense, s: &[Sparse]) {
    let mut gives = vec![0.0; basis.rows];
    let mut far = (0.0, Vec::new());
    for (o, column) in s.iter().enumerate() {
        let mut left = columns.row(o).to_vec();
        for (t, v) in column {
            add_scaled(&mut left, -v, basis.row(*t));
            gives[*t] += v * v * dot(basis.row(*t), basis.row(*t));
        }
        let size = dot(&left, &left);
        if size > far.0 {
            far = (size, left);
        }
    }
    let least = (0..gives.len()).fold(0, |a, b| if gives[b] < gives[a] { b } else { a });
    if far.0 > 0.0 {
        let scale = far.0.sqrt().recip();
        basis.row_mut(least).iter_mut().zip(&far.1).for_each(|(b, l)| *b = l * scale);
    }
}

/// Chooses each output's rows and numbers; rows that it had stay where these are nearer. Gives the square error.
fn select(columns: &Dense, basis: &Dense, s: &mut [Sparse], kept: usize, block: usize) -> f64 {
    let gram = basis.times(&basis.transposed());
    let along = columns.times(&basis.transposed());
    let mut sum = 0.0;
    for (o, column) in s.iter_mut().enumerate() {
        let square = dot(columns.row(o), columns.row(o));
        let pursuit = Pursuit { gram: &gram, along: along.row(o), square };
        let (mut new, mut error) = pursuit.greedy(kept, block);
        if !column.is_empty() {
            let rows: Vec<usize> = column.iter().map(|(t, _)| *t).collect();
            let (old, old_error) = pursuit.on(&rows);
            if old_error <= error {
                (new, error) = (old, old_error);
            }
        }
        new.sort_by_key(|(t, _)| *t);
        *column = new;
        sum += error.max(0.0);
    }
    sum
}

/// Fitting one column by columns of a basis of which all inner products are known.
struct Pursuit<'a> {
    gram: &'a Dense,
    along: &'a [f64],
    square: f64,
}

impl Pursuit<'_> {
    /// Columns one by one, each the one that most of what is left lies along; of equals the first.
    fn greedy(&self, kept: usize, block: usize) -> (Sparse, f64) {
        let r = self.along.len();
        let quota = kept * block / r;
        let (mut fit, mut open, mut used) = (Cholesky::default(), vec![true; r], vec![0; r.div_ceil(block)]);
        let (mut left, mut numbers) = (self.along.to_vec(), Vec::new());
        while fit.rows.len() < kept {
            let score = |t: usize| left[t] * left[t] / self.gram.at(t, t).max(f64::MIN_POSITIVE);
            let candidates = (0..r).filter(|t| open[*t] && used[t / block] < quota);
            let Some(best) = candidates.reduce(|a, b| if score(b) > score(a) { b } else { a }) else { break };
            open[best] = false;
            if !fit.add(self.gram, best) {
                continue;
            }
            used[best / block] += 1;
            numbers = fit.solve(self.along);
            left.copy_from_slice(self.along);
            for (t, v) in fit.rows.iter().zip(&numbers) {
                add_scaled(&mut left, -v, self.gram.row(*t));
            }
        }
        self.done(&fit, numbers)
    }

    /// The best numbers for given columns.
    fn on(&self, rows: &[usize]) -> (Sparse, f64) {
        let mut fit = Cholesky::default();
        rows.iter().for_each(|t| {
            fit.add(self.gram, *t);
        });
        let numbers = fit.solve(self.along);
        self.done(&fit, numbers)
    }

    fn done(&self, fit: &Cholesky, numbers: Vec<f64>) -> (Sparse, f64) {
        let explained: f64 = fit.rows.iter().zip(&numbers).map(|(t, v)| self.along[*t] * v).sum();
        (fit.rows.iter().copied().zip(numbers).collect(), self.square - explained)
    }
}

/// The factor of a growing part of a symmetric matrix.
#[derive(Default)]
struct Cholesky {
    rows: Vec<usize>,
    /// Row `i` has `i + 1` numbers.
    lower: Vec<Vec<f64>>,
}

impl Cholesky {
    /// Adds a row and column of the matrix; false if it depends on those that are there.
    fn add(&mut self, m: &Dense, t: usize) -> bool {
        let mut row: Vec<f64> = Vec::with_capacity(self.rows.len() + 1);
        for (i, u) in self.rows.iter().enumerate() {
            let v = (m.at(t, *u) - dot(&row, &self.lower[i][..i])) / self.lower[i][i];
            row.push(v);
        }
        let rest = m.at(t, t) - dot(&row, &row);
        if rest <= 1e-12 * m.at(t, t) || rest <= 0.0 {
            return false;
        }
        row.push(rest.sqrt());
        self.rows.push(t);
        self.lower.push(row);
        true
    }

    /// Solves for these rows of a right side.
    fn solve(&self, right: &[f64]) -> Vec<f64> {
        let n = self.rows.len();
        let mut x: Vec<f64> = Vec::with_capacity(n);
        for i in 0..n {
            let v = (right[self.rows[i]] - dot(&x, &self.lower[i][..i])) / self.lower[i][i];
            x.push(v);
        }
        for i in (0..n).rev() {
            let later: f64 = (i + 1..n).map(|j| self.lower[j][i] * x[j]).sum();
            x[i] = (x[i] - later) / self.lower[i][i];
        }
        x
    }
}

/// The best column of the basis with its numbers, one after the other, for given rows (Rubinstein et al. 2008); one that no output takes becomes what
/// is left of an output that is far off.
fn refit(columns: &Dense, basis: &mut Dense, s: &mut [Sparse]) {
    let mut left = columns.clone();
    let mut users: Vec<Vec<(usize, usize)>> = vec![Vec::new(); basis.rows];
    for (o, column) in s.iter().enumerate() {
        for (at, (t, v)) in column.iter().enumerate() {
            add_scaled(left.row_mut(o), -v, basis.row(*t));
            users[*t].push((o, at));
        }
    }
    let mut taken = vec![false; s.len()];
    for (t, users) in users.iter().enumerate() {
        let old = basis.row(t).to_vec();
        if users.is_empty() {
            let size = |o: usize| dot(left.row(o), left.row(o));
            let far = (0..s.len()).filter(|o| !taken[*o]).reduce(|a, b| if size(b) > size(a) { b } else { a });
            if let Some(o) = far.filter(|o| size(*o) > 0.0) {
                taken[o] = true;
                let scale = size(o).sqrt().recip();
                basis.row_mut(t).iter_mut().zip(left.row(o)).for_each(|(b, l)| *b = l * scale);
            }
            continue;
        }
        // What is left without this column, along its numbers.
        let mut new = vec![0.0; old.len()];
        for (o, at) in users {
            let v = s[*o][*at].1;
            add_scaled(left.row_mut(*o), v, &old);
            add_scaled(&mut new, v, left.row(*o));
        }
        let norm = dot(&new, &new).sqrt();
        if norm > 0.0 {
            new.iter_mut().for_each(|v| *v /= norm);
            basis.row_mut(t).copy_from_slice(&new);
        }
        for (o, at) in users {
            let size = dot(basis.row(t), basis.row(t)).max(f64::MIN_POSITIVE);
            let v = dot(left.row(*o), basis.row(t)) / size;
            s[*o][*at].1 = v;
            add_scaled(left.row_mut(*o), -v, basis.row(t));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -1..1 without a pattern.
    fn random(rows: usize, columns: usize, seed: u64) -> Dense {
        let number = |i: usize, j: usize| {
            let mut z = (seed << 40) ^ ((i as u64) << 20) ^ j as u64;
            for _ in 0..2 {
                z = (z ^ (z >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z ^= z >> 27;
            }
            (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        Dense::from_fn(rows, columns, number)
    }

    /// Numbers in a few rows of each column, so many per block.
    fn sparse(r: usize, columns: usize, per_block: usize, block: usize) -> Dense {
        let all = random(r, columns, 7);
        let order = random(r, columns, 8);
        Dense::from_fn(r, columns, |t, o| {
            let start = t / block * block;
            let larger = (start..start + block).filter(|u| order.at(*u, o) > order.at(t, o)).count();
            if larger < per_block { all.at(t, o) + all.at(t, o).signum() } else { 0.0 }
        })
    }

    fn relative(f: &Factors, w: &Dense) -> f64 {
        (f.error(w) / w.square()).sqrt()
    }

    #[test]
    fn all_columns_give_the_matrix() {
        let w = random(12, 20, 1);
        assert!(relative(&low_rank(&w, 12), &w) < 1e-6);
        assert!(relative(&dense_sparse(&w, 12, 12, 12), &w) < 1e-5);
    }

    #[test]
    fn factors_that_were_multiplied_are_found() {
        let w = random(48, 12, 2).times(&sparse(12, 400, 2, 12));
        let f = dense_sparse(&w, 12, 2, 12);
        assert!(relative(&f, &w) < 1e-3, "{}", relative(&f, &w));
        assert!(relative(&f, &w) < 0.2 * relative(&low_rank(&w, 8), &w));
    }

    #[test]
    fn every_column_has_its_share_of_each_block() {
        let w = random(24, 60, 3);
        let f = dense_sparse(&w, 16, 4, 8);
        for o in 0..60 {
            for start in [0, 8] {
                let n = (start..start + 8).filter(|t| f.s.at(*t, o) != 0.0).count();
                assert!(n <= 2, "{n} numbers of column {o}");
            }
        }
    }

    #[test]
    fn sweeps_never_move_away() {
        let w = random(20, 50, 4);
        let columns = w.transposed();
        let (mut basis, mut s) = (directions(&columns, 10), vec![Vec::new(); 50]);
        let mut last = f64::INFINITY;
        for _ in 0..8 {
            let error = select(&columns, &basis, &mut s, 3, 10);
            assert!(error <= last * (1.0 + 1e-4), "{error} after {last}");
            last = error;
            refit(&columns, &mut basis, &mut s);
        }
    }

    /// Columns in clusters, each in a plane of its own: few numbers do where a low rank does not.
    #[test]
    fn clusters_are_nearer_than_a_low_rank_of_the_same_size() {
        let (n, outputs, r, kept) = (32, 128, 16, 2);
        let planes = random(n, 16, 5);
        let w = Dense::from_fn(n, outputs, |k, o| {
            let c = o % 8 * 2;
            let [a, b] = [o as f64 * 0.37, o as f64 * 0.91].map(f64::sin);
            planes.at(k, c) * a + planes.at(k, c + 1) * b
        });
        let equal = (n * r + kept * outputs) / (n + outputs);
        let (f, low) = (relative(&dense_sparse(&w, r, kept, r), &w), relative(&low_rank(&w, equal), &w));
        assert!(f < 0.5 * low, "{f} against {low}");
    }

    #[test]
    fn columns_of_zeros_and_of_one_direction_are_fitted() {
        let w = Dense::from_fn(8, 30, |k, o| if o % 3 == 0 { 0.0 } else { (k + 1) as f64 * o as f64 });
        for f in [dense_sparse(&w, 4, 2, 4), low_rank(&w, 2)] {
            assert!(f.d.data.iter().chain(&f.s.data).all(|v| v.is_finite()));
            assert!(relative(&f, &w) < 1e-5);
        }
    }
}
