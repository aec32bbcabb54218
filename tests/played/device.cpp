// A device cuda:0 whose memory is the host's: allocation, views, pinned memory, and the same memory under the other name.
//
// What computes is registered from Python (device.py). One stream, which is always done.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <map>
#include <mutex>

using namespace c10;

namespace {

const Device CUDA0(DeviceType::CUDA, 0);
const Stream ONLY_STREAM(Stream::DEFAULT, CUDA0);

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return CUDA0; }
  Device getDevice() const override { return CUDA0; }
  Stream getStream(Device) const noexcept override { return ONLY_STREAM; }
  Stream getNewStream(Device, int) const override { return ONLY_STREAM; }
  Stream exchangeStream(Stream) const noexcept override { return ONLY_STREAM; }
};

// Memory of the device.
struct Memory final : Allocator {
  DataPtr allocate(size_t bytes) override {
    void* data = GetCPUAllocator()->raw_allocate(bytes);
    return {data, data, raw_deleter(), CUDA0};
  }
  DeleterFnPtr raw_deleter() const override { return GetCPUAllocator()->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;

// Host memory that says it is pinned.
struct Pinned final : Allocator {
  DataPtr allocate(size_t bytes) override {
    void* data = GetCPUAllocator()->raw_allocate(bytes);
    std::lock_guard<std::mutex> lock(mutex);
    size_of[reinterpret_cast<uintptr_t>(data)] = bytes;
    return {data, data, raw_deleter(), Device(DeviceType::CPU)};
  }
  DeleterFnPtr raw_deleter() const override { return &Pinned::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  static void free(void* data);

  bool holds(const void* data) const {
    std::lock_guard<std::mutex> lock(mutex);
    const auto address = reinterpret_cast<uintptr_t>(data);
    const auto after = size_of.upper_bound(address);
    return after != size_of.begin() && address < std::prev(after)->first + std::prev(after)->second;
  }

  mutable std::mutex mutex;
  std::map<uintptr_t, size_t> size_of;
};
Pinned pinned;

void Pinned::free(void* data) {
  {
    std::lock_guard<std::mutex> lock(pinned.mutex);
    pinned.size_of.erase(reinterpret_cast<uintptr_t>(data));
  }
  GetCPUAllocator()->raw_deallocate(data);
}

// What torch asks a CUDA build; torch finds it by its name.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  bool isPinnedPtr(const void* data) const override { return pinned.holds(data); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
};

// A tensor over the memory of x, on the other device.
at::Tensor renamed(const at::Tensor& x, Device device, DispatchKey key) {
  auto* owner = new Storage(x.storage());
  DataPtr data(owner->mutable_data(), owner, [](void* p) { delete static_cast<Storage*>(p); }, device);
  Storage storage(Storage::use_byte_size_t(), owner->nbytes(), std::move(data), nullptr, false);
  auto out = at::detail::make_tensor<TensorImpl>(std::move(storage), DispatchKeySet(key), x.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides(), x.storage_offset());
  return out;
}

at::Tensor on_host(const at::Tensor& x) { return renamed(x, Device(DeviceType::CPU), DispatchKey::CPU); }
at::Tensor on_gpu(const at::Tensor& x) { return renamed(x, CUDA0, DispatchKey::CUDA); }

// Let x be y: for an output that an operation resizes.
void become(const at::Tensor& x, const at::Tensor& y) {
  x.unsafeGetTensorImpl()->set_storage_keep_dtype(y.storage());
  x.unsafeGetTensorImpl()->set_sizes_and_strides(y.sizes(), y.strides(), y.storage_offset());
}

at::Tensor empty(SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
                 std::optional<bool>, std::optional<MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, DispatchKeySet(DispatchKey::CUDA),
                                   dtype_or_default(dtype), format);
}

at::Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, std::optional<ScalarType> dtype,
                         std::optional<Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           DispatchKeySet(DispatchKey::CUDA), dtype_or_default(dtype));
}

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}

TORCH_LIBRARY(played, library) {
  library.def("on_host(Tensor x) -> Tensor", on_host);
  library.def("on_gpu(Tensor x) -> Tensor", on_gpu);
  library.def("become(Tensor x, Tensor y) -> ()", become);
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
}
