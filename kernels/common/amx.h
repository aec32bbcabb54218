// The tile registers of Intel AMX: request them from the system, and configure them while a thread multiplies.
#pragma once
#include <cstdint>
#include <cstdlib>

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Asks the operating system once for the tile registers. Returns false where it refuses, or where the environment has
// OKAPI_AMX=0.
static inline bool has_amx() {
    static const bool granted = [] {
        const char* wanted = std::getenv("OKAPI_AMX");
        const bool refused = wanted && wanted[0] == '0' && !wanted[1];
        return !refused && syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    }();
    return granted;
}

// Configures eight tiles of 16 rows of 64 bytes. The destructor releases them, because torch's products configure their
// own. `width` is the bytes per row of tiles 0 to 3 (the sums) and 7.
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
