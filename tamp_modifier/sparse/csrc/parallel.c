/* Threads: those of the OpenMP runtime of the process, given by its addresses, so that this library needs
 * none at build time and shares the threads (and their CPU binding) of torch. */
#include <string.h>

#include "tamp_sparse.h"

/* Below this many multiplications a second thread costs more than it brings. */
#define SERIAL_COST (1 << 17)

static struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_num)(void), (*num_threads)(void), (*max_threads)(void), (*in_parallel)(void);
} openmp;
static int team_was_used, forked_after_use;

EXPORT void tamp_set_openmp(void *parallel, void *thread_num, void *num_threads, void *max_threads,
                            void *in_parallel) {
    memcpy(&openmp.parallel, &parallel, sizeof parallel);
    memcpy(&openmp.thread_num, &thread_num, sizeof thread_num);
    memcpy(&openmp.num_threads, &num_threads, sizeof num_threads);
    memcpy(&openmp.max_threads, &max_threads, sizeof max_threads);
    memcpy(&openmp.in_parallel, &in_parallel, sizeof in_parallel);
}

/* The threads of an OpenMP team do not exist in a forked child, which would wait for them forever. And
 * what the system permits to one process the child asks for itself. */
EXPORT void tamp_after_fork(void) {
    forked_after_use |= team_was_used;
    tamp_current_path()->supported();
}

typedef struct {
    tamp_range work;
    void *context;
    int64_t count;
} team_task;

static void run_share(void *data) {
    const team_task *task = data;
    const int64_t thread = openmp.thread_num(), threads = openmp.num_threads();
    const int64_t begin = task->count * thread / threads, end = task->count * (thread + 1) / threads;
    if (begin < end) task->work(task->context, begin, end);
}

void tamp_parallel(tamp_range work, void *context, int64_t count, int64_t cost) {
    if (openmp.parallel && !forked_after_use && cost >= SERIAL_COST && !openmp.in_parallel()) {
        const int threads = openmp.max_threads();
        if (threads > 1) {
            team_task task = {work, context, count};
            team_was_used = 1;
            openmp.parallel(run_share, &task, (unsigned)threads, 0);
            return;
        }
    }
    if (count > 0) work(context, 0, count);
}
