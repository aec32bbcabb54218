// Runs recorded calls in order.
#include <cstdint>

struct Call {
    void (*function)(void*);
    int64_t* arguments;  // the first is the number of rows
};

extern "C" void run_tape(const Call* calls, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; i++) {
        *calls[i].arguments = rows;
        calls[i].function(calls[i].arguments);
    }
}
