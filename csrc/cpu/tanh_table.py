"""Prints tanh_table.inl: tanh as 30 polynomials of degree 5, for the two-register permutes of AVX-512.

    python csrc/cpu/tanh_table.py > csrc/cpu/tanh_table.inl       (mpmath comes with torch)

Piece 0 is |x| < 2^-4; then four pieces to a binade, up to [8, 10), of which only [8, 9.02] is used. On each,
tanh(c + r) = y + r (p1 + r (p2 + ...)), interpolated at Chebyshev nodes. c is chosen near the middle so that tanh(c)
lies next to a float: y then adds no error of its own (Gal's accurate tables).
"""

import mpmath
import numpy as np

mpmath.mp.prec = 200
DEGREE = 5
LAST = 9.02  # from here on tanh rounds to 1


def nearly_exact_center(low: float, high: float) -> np.float32:
    """The float around the middle whose tanh is nearest to a float."""
    middle = np.float32((low + high) / 2)
    best, best_error = middle, mpmath.mpf(1)
    center = middle
    for _ in range(2000):
        center = np.nextafter(center, np.float32(high))
        exact = mpmath.tanh(mpmath.mpf(float(center)))
        error = abs(exact - mpmath.mpf(float(np.float32(float(exact)))))
        if error < best_error:
            best, best_error = center, error
    return best


def piece(low: float, high: float) -> list[np.float32]:
    """c, y, p1, ..., p5."""
    c = nearly_exact_center(low, high)
    at = mpmath.mpf(float(c))
    y = mpmath.tanh(at)
    middle, half = mpmath.mpf(low + high) / 2 - at, mpmath.mpf(high - low) / 2
    nodes = [middle + half * mpmath.cos(mpmath.pi * (2 * k + 1) / (2 * DEGREE)) for k in range(DEGREE)]
    vandermonde = mpmath.matrix(DEGREE, DEGREE)
    values = mpmath.matrix(DEGREE, 1)
    for i, r in enumerate(nodes):
        values[i] = (mpmath.tanh(at + r) - y) / r
        for j in range(DEGREE):
            vandermonde[i, j] = r**j
    p = mpmath.lu_solve(vandermonde, values)
    return [c, np.float32(float(y)), *(np.float32(float(v)) for v in p)]


def main() -> None:
    pieces = [[np.float32(v) for v in (0, 0, 1, 0, -1 / 3, 0, 2 / 15)]]
    for exponent in range(-4, 3):
        for quarter in range(4):
            low = 2.0**exponent * (1 + quarter / 4)
            pieces.append(piece(low, low + 2.0**exponent / 4))
    pieces.append(piece(8, LAST))
    pieces += [pieces[-1]] * (32 - len(pieces))
    print("// The pieces of tanh; printed by tanh_table.py, which says what they are. Included by tanh.inl.\n")
    print("// clang-format off\nnamespace tanh_table {")
    print(f"constexpr float kLast = {LAST}f;")
    for k, name in enumerate(("c", "y", "p1", "p2", "p3", "p4", "p5")):
        print(f"alignas(64) constexpr float {name}[32] = {{")
        for row in range(0, 32, 4):
            print("    " + " ".join(f"{float(p[k]):.8e}f," for p in pieces[row : row + 4]))
        print("};")
    print("}  // namespace tanh_table\n// clang-format on")


if __name__ == "__main__":
    main()
