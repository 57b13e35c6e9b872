// C99's complex functions, which Wine's ucrtbase.dll names and does not have; NumPy calls them.
//
// The functions here are named `own_<name>`; machine.py exports each as <name> from a ucrtbase.dll that passes everything else on
// to Wine's. Microsoft passes a complex number as a struct of two, where GCC passes its own type otherwise.
#include <complex.h>
#include <math.h>

typedef struct {
    double real, imaginary;
} Double;
typedef struct {
    float real, imaginary;
} Float;

#define GCC(z) __builtin_complex((double)(z).real, (double)(z).imaginary)

static Double as_double(double complex z) { return (Double){creal(z), cimag(z)}; }
static Float as_float(double complex z) { return (Float){(float)creal(z), (float)cimag(z)}; }

// Windows' long double is a double, so the functions ending in l are the double ones.
#define TO_COMPLEX(name)                                           \
    Double own_##name(Double z) { return as_double(name(GCC(z))); } \
    Double own_##name##l(Double z) { return as_double(name(GCC(z))); } \
    Float own_##name##f(Float z) { return as_float(name(GCC(z))); }
#define TO_REAL(name)                                              \
    double own_##name(Double z) { return name(GCC(z)); }            \
    double own_##name##l(Double z) { return name(GCC(z)); }         \
    float own_##name##f(Float z) { return (float)name(GCC(z)); }

TO_REAL(cabs) TO_REAL(carg) TO_REAL(creal) TO_REAL(cimag)
TO_COMPLEX(cacos) TO_COMPLEX(cacosh) TO_COMPLEX(casin) TO_COMPLEX(casinh) TO_COMPLEX(catan) TO_COMPLEX(catanh)
TO_COMPLEX(ccos) TO_COMPLEX(ccosh) TO_COMPLEX(csin) TO_COMPLEX(csinh) TO_COMPLEX(ctan) TO_COMPLEX(ctanh)
TO_COMPLEX(cexp) TO_COMPLEX(clog) TO_COMPLEX(csqrt) TO_COMPLEX(conj) TO_COMPLEX(cproj)

Double own_cpow(Double base, Double power) { return as_double(cpow(GCC(base), GCC(power))); }
Double own_cpowl(Double base, Double power) { return as_double(cpow(GCC(base), GCC(power))); }
Float own_cpowf(Float base, Float power) { return as_float(cpow(GCC(base), GCC(power))); }
