// runtime.h - a device's memory, stream and copies: all that the engine uses of CUDA's runtime beside kernels and products.
#pragma once

#include "../../failure.h"
#include "../kernels.h"

#include <string>

struct CUevent_st;
typedef CUevent_st *cudaEvent_t;

namespace cft::cuda {

int  count_devices(); // 0 without a driver
void describe_device(int device, cft_device *out);
void use_device(int device); // for the calling thread
size_t free_bytes(int device);

// memory is one allocation on the device. Throws CFT_ERR_NO_MEMORY.
class memory {
  public:
    explicit memory(size_t bytes);
    ~memory();
    memory(const memory &)            = delete;
    memory &operator=(const memory &) = delete;
    char   *data() const { return data_; }
    size_t  size() const { return size_; }

  private:
    char  *data_ = nullptr;
    size_t size_ = 0;
};

// pinned is memory of the host from which copies need not wait.
class pinned {
  public:
    explicit pinned(size_t bytes);
    ~pinned();
    pinned(const pinned &)            = delete;
    pinned &operator=(const pinned &) = delete;
    char   *data() const { return data_; }

  private:
    char *data_ = nullptr;
};

// Locks memory that is mapped already, in whole pages, for reading by the device; false, with the driver's words, where it refuses.
bool lock_pages(const void *at, size_t bytes, std::string &why);
void unlock_pages(const void *at);

class stream;

// event is a point in a stream's work.
class event {
  public:
    event();
    ~event();
    event(const event &)            = delete;
    event &operator=(const event &) = delete;
    void record(const stream &s);
    void wait() const; // the host, until what was on the stream before is done; throws what went wrong in it

  private:
    friend class stream;
    cudaEvent_t event_ = nullptr;
};

enum class stream_use { work, copies, side };

class stream {
  public:
    explicit stream(stream_use use);
    ~stream();
    stream(const stream &)            = delete;
    stream &operator=(const stream &) = delete;
    cudaStream_t get() const { return stream_; }
    void         wait() const; // until all work put on it is done; throws what went wrong in it
    // The same for what is about to give back memory that the work uses: what went wrong is told by whoever else waits for the work, and nothing
    // is under way any more.
    void wait_to_end() const noexcept {
        try {
            wait();
        } catch (const failure &) {
        }
    }
    // What is put on it from now on begins after the event, if that was recorded.
    void         wait_for(const event &e) const;

  private:
    cudaStream_t stream_ = nullptr;
};

void to_device(void *to, const void *from, size_t bytes, cudaStream_t stream);
// From locked memory, which must stay so until the copy is done: the host does not wait.
void to_device_from_locked(void *to, const void *from, size_t bytes, cudaStream_t stream);
void to_host(void *to, const void *from, size_t bytes, cudaStream_t stream);
// Rows of `width` bytes, from and to rows that are so many bytes apart.
void to_device_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t stream);
void to_host_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t stream);

} // namespace cft::cuda
