// The tile registers of Intel AMX: asking the system for them, and holding them for as long as a thread multiplies.
#pragma once
#include <cstdint>
#include <cstdlib>

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Asks the kernel once for the use of the tile registers; false where it refuses, and where OKAPI_AMX=0 in the
// environment says so.
static inline bool has_amx() {
    static const bool granted = [] {
        const char* wanted = std::getenv("OKAPI_AMX");
        const bool refused = wanted && wanted[0] == '0' && !wanted[1];
        return !refused && syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    }();
    return granted;
}

// Eight tiles of 16 rows of 64 bytes; given back at the end of a region, since torch's products set up their own.
// Tiles 0 to 3, which are sums, and tile 7 can be narrower.
struct Tiles {
    bool on;
    explicit Tiles(bool on, int width = 64) : on(on) {
        if (!on) return;
        alignas(64) uint8_t config[64] = {1};
        for (int i = 0; i < 8; ++i) config[16 + 2 * i] = i < 4 || i == 7 ? width : 64, config[48 + i] = 16;
        _tile_loadconfig(config);
    }
    ~Tiles() {
        if (on) _tile_release();
    }
};

#else

static inline bool has_amx() { return false; }
struct Tiles {
    explicit Tiles(bool, int = 64) {}
};

#endif
