package evaluate

import (
	"math"
	"math/big"
	"math/cmplx"
)

// value is a number: exact as a fraction while the operations allow, and a complex number of 64-bit parts otherwise.
type value struct {
	exact *big.Rat // nil: only c is known
	c     complex128
	error float64 // what c may be off by, because of rounding
}

// epsilon is what one rounding of a 64-bit number is off by at most, relative to its size.
const epsilon = 0x1p-53

// maxBits bounds numerator and denominator of exact values; beyond, a value goes on inexact.
const maxBits = 1 << 14

func exactly(r *big.Rat) value {
	f, _ := r.Float64()
	v := value{exact: r, c: complex(f, 0), error: epsilon * math.Abs(f)}
	if r.Num().BitLen() > maxBits || r.Denom().BitLen() > maxBits {
		v.exact = nil
	}
	return v
}

func whole(n int64) value { return exactly(new(big.Rat).SetInt64(n)) }

func inexactly(c complex128) value { return rounded(c, 0) }

// rounded is a value with the error that its parts had, and one rounding more.
func rounded(c complex128, parts float64) value {
	return value{c: c, error: parts + 2*epsilon*cmplx.Abs(c)}
}

// through is a function's value. Its error is what the argument's makes of it.
func (v value) through(f func(complex128) complex128) value {
	y := f(v.c)
	moved := math.Max(cmplx.Abs(f(v.c+complex(v.error, 0))-y), cmplx.Abs(f(v.c+complex(0, v.error))-y))
	return rounded(y, moved)
}

// undefined is the result of what has none, as a division by zero.
var undefined = inexactly(cmplx.NaN())

func (v value) isDefined() bool { return !cmplx.IsNaN(v.c) && !cmplx.IsInf(v.c) }

// integer returns the value as a small integer, if it is one.
func (v value) integer() (int64, bool) {
	if v.exact == nil || !v.exact.IsInt() || !v.exact.Num().IsInt64() {
		return 0, false
	}
	return v.exact.Num().Int64(), true
}

func add(a, b value) value {
	if a.exact != nil && b.exact != nil {
		return exactly(new(big.Rat).Add(a.exact, b.exact))
	}
	return rounded(a.c+b.c, a.error+b.error)
}

func negate(a value) value {
	if a.exact != nil {
		return exactly(new(big.Rat).Neg(a.exact))
	}
	return value{c: -a.c, error: a.error}
}

func multiply(a, b value) value {
	if a.exact != nil && b.exact != nil {
		return exactly(new(big.Rat).Mul(a.exact, b.exact))
	}
	return rounded(a.c*b.c, cmplx.Abs(a.c)*b.error+cmplx.Abs(b.c)*a.error)
}

func divide(a, b value) value {
	if b.c == 0 {
		return undefined
	}
	if a.exact != nil && b.exact != nil {
		return exactly(new(big.Rat).Quo(a.exact, b.exact))
	}
	return rounded(a.c/b.c, (a.error+cmplx.Abs(a.c/b.c)*b.error)/cmplx.Abs(b.c))
}

// maxExponent bounds the powers that are computed exactly.
const maxExponent = 4096

// power is a to the b, on the principal branch.
func power(a, b value) value {
	n, ok := b.integer()
	if ok && a.exact != nil && n >= -maxExponent && n <= maxExponent {
		if bits := int64(a.exact.Num().BitLen() + a.exact.Denom().BitLen()); bits*max(n, -n) <= maxBits {
			return wholePower(a.exact, n)
		}
	}
	if b.exact != nil && a.exact != nil && b.exact.Cmp(big.NewRat(1, 2)) == 0 {
		return root(a)
	}
	if a.c == 0 {
		if real(b.c) > 0 {
			return whole(0)
		}
		return undefined
	}
	c := cmplx.Pow(a.c, b.c)
	relative := cmplx.Abs(b.c)*a.error/cmplx.Abs(a.c) + cmplx.Abs(cmplx.Log(a.c))*(b.error+epsilon*cmplx.Abs(b.c))
	return rounded(c, cmplx.Abs(c)*relative)
}

func wholePower(base *big.Rat, n int64) value {
	if base.Sign() == 0 && n < 0 {
		return undefined
	}
	e := big.NewInt(max(n, -n))
	num, den := new(big.Int).Exp(base.Num(), e, nil), new(big.Int).Exp(base.Denom(), e, nil)
	if n < 0 {
		num, den = den, num
	}
	return exactly(new(big.Rat).SetFrac(num, den))
}

// root is the square root, exact of squares.
func root(a value) value {
	if a.exact != nil && a.exact.Sign() >= 0 {
		num, den := new(big.Int).Sqrt(a.exact.Num()), new(big.Int).Sqrt(a.exact.Denom())
		r := new(big.Rat).SetFrac(num, den)
		if new(big.Rat).Mul(r, r).Cmp(a.exact) == 0 {
			return exactly(r)
		}
	}
	return a.through(cmplx.Sqrt)
}

// rootOfDegree is the principal root, but of a negative number the negative root where the degree is odd.
func rootOfDegree(a, n value) value {
	degree, ok := n.integer()
	if ok && degree%2 != 0 && a.exact != nil && a.exact.Sign() < 0 {
		return negate(power(negate(a), divide(whole(1), n)))
	}
	return power(a, divide(whole(1), n))
}

// maxFactorial bounds what is multiplied out.
const maxFactorial = 500

func factorial(a value) value {
	n, ok := a.integer()
	if !ok || n < 0 || n > maxFactorial {
		return undefined
	}
	return exactly(new(big.Rat).SetInt(new(big.Int).MulRange(1, max(n, 1))))
}

func choose(a, b value) value {
	n, ok := a.integer()
	k, ok2 := b.integer()
	if !ok || !ok2 || n < 0 || n > maxFactorial || k < 0 {
		return undefined
	}
	return exactly(new(big.Rat).SetInt(new(big.Int).Binomial(n, k)))
}

func magnitude(a value) value {
	if a.exact != nil {
		return exactly(new(big.Rat).Abs(a.exact))
	}
	return rounded(complex(cmplx.Abs(a.c), 0), a.error)
}

// near is how far inexact values that are equal may lie apart, relative to their size: some thousand roundings. Where sums
// cancel, it is errorMargin times what rounding may have made.
const (
	near        = 1e-10
	errorMargin = 64
)

// same reports whether two defined values are equal: exactly where both are exact.
func same(a, b value) bool {
	if a.exact != nil && b.exact != nil {
		return a.exact.Cmp(b.exact) == 0
	}
	size := math.Max(cmplx.Abs(a.c), cmplx.Abs(b.c))
	return cmplx.Abs(a.c-b.c) <= math.Max(near*size, errorMargin*(a.error+b.error))
}
