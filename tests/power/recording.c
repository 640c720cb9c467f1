/* Preloaded into a process: records every write, truncation and sync of one ledger's database and WAL, with the data.
 *
 * METERGATE_LEDGER is the database's real path, METERGATE_RECORDING the file that records are appended to, each in one
 * write: a byte of the kind (W, T, S), a byte of the file (D, L), the offset or size, the length of the data, the data.
 * A record is appended after the call has returned: a sync in the recording has happened.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static ssize_t (*real_write)(int, const void *, size_t);

static int recording(void) {
    static int descriptor = -1;
    if (descriptor < 0) {
        const char *path = getenv("METERGATE_RECORDING");
        descriptor = path == NULL ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    }
    return descriptor;
}

/* 'D' for the database, 'L' for its log, 0 for every other file. */
static char file_of(int descriptor) {
    const char *ledger = getenv("METERGATE_LEDGER");
    char link[64], path[PATH_MAX];
    if (ledger == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(ledger);
    if (strncmp(path, ledger, prefix) != 0) return 0;
    if (path[prefix] == 0) return 'D';
    return strcmp(path + prefix, "-wal") == 0 ? 'L' : 0;
}

static void append(char kind, char file, uint64_t offset, const void *data, uint32_t length) {
    unsigned char *record = malloc(14 + (size_t)length);
    if (record == NULL) abort();
    record[0] = (unsigned char)kind;
    record[1] = (unsigned char)file;
    memcpy(record + 2, &offset, 8);
    memcpy(record + 10, &length, 4);
    if (length > 0) memcpy(record + 14, data, length);
    if (real_write == NULL) real_write = dlsym(RTLD_NEXT, "write");
    if (real_write(recording(), record, 14 + (size_t)length) != 14 + (ssize_t)length) abort();
    free(record);
}

static void wrote(int descriptor, const void *data, ssize_t length, off64_t offset) {
    char file = length > 0 ? file_of(descriptor) : 0;
    if (file != 0) append('W', file, (uint64_t)offset, data, (uint32_t)length);
}

static void did(char kind, int descriptor, int result, uint64_t size) {
    char file = result == 0 ? file_of(descriptor) : 0;
    if (file != 0) append(kind, file, size, NULL, 0);
}

ssize_t write(int descriptor, const void *data, size_t length) {
    if (real_write == NULL) real_write = dlsym(RTLD_NEXT, "write");
    ssize_t result = real_write(descriptor, data, length);
    if (result > 0 && file_of(descriptor) != 0) wrote(descriptor, data, result, lseek64(descriptor, 0, SEEK_CUR) - result);
    return result;
}

#define PWRITE(name, offset_type)                                                                  \
    ssize_t name(int descriptor, const void *data, size_t length, offset_type offset) {            \
        static ssize_t (*real)(int, const void *, size_t, offset_type);                            \
        if (real == NULL) real = dlsym(RTLD_NEXT, #name);                                          \
        ssize_t result = real(descriptor, data, length, offset);                                   \
        wrote(descriptor, data, result, (off64_t)offset);                                          \
        return result;                                                                             \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SYNC(name)                                                                                 \
    int name(int descriptor) {                                                                     \
        static int (*real)(int);                                                                   \
        if (real == NULL) real = dlsym(RTLD_NEXT, #name);                                          \
        int result = real(descriptor);                                                             \
        did('S', descriptor, result, 0);                                                           \
        return result;                                                                             \
    }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(name, size_type)                                                                  \
    int name(int descriptor, size_type size) {                                                     \
        static int (*real)(int, size_type);                                                        \
        if (real == NULL) real = dlsym(RTLD_NEXT, #name);                                          \
        int result = real(descriptor, size);                                                       \
        did('T', descriptor, result, (uint64_t)size);                                              \
        return result;                                                                             \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
