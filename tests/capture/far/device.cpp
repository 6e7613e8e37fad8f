/* A device for the tests: its kernels are the CPU's, and its memory is closed to the host but while one of them runs.
 *
 * What reads an address of it outside of a kernel dies of it. Copies to main memory and numbers that Python asks for are counted, for
 * the host would wait for them on a device that is behind. torch registers it as it does those of other makers (PrivateUse1), so that
 * its tensors are plain ones, and autograd gives it a thread of its own.
 */

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <sys/mman.h>

#include <atomic>
#include <map>
#include <mutex>

namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = c10::SymIntArrayRef;

constexpr auto KIND = c10::DeviceType::PrivateUse1;
constexpr size_t PAGE = 4096;
const c10::Device DEVICE(KIND, 0);

std::atomic<int64_t> waits{0};
thread_local int inside = 0; /* of kernels: what these copy is the device's own business */

struct Inside {
  Inside() { inside++; }
  ~Inside() { inside--; }
};

/* -- memory ------------------------------------------------------------------------------------------------------------------- */

struct Region {
  size_t size;
  int opened; /* by how many */
};
std::recursive_mutex mutex;
std::map<char *, Region> &regions() {
  static auto *all = new std::map<char *, Region>; /* never destroyed: tensors outlive everything */
  return *all;
}

void release(void *data) {
  std::lock_guard<std::recursive_mutex> held(mutex);
  auto found = regions().find(static_cast<char *>(data));
  if (found == regions().end()) return;
  munmap(data, found->second.size);
  regions().erase(found);
}

/* The region that an address lies in is open as long as this lives. */
class Open {
 public:
  explicit Open(const void *data) {
    std::lock_guard<std::recursive_mutex> held(mutex);
    auto address = static_cast<char *>(const_cast<void *>(data));
    auto found = regions().upper_bound(address);
    if (address == nullptr || found == regions().begin()) return;
    --found;
    if (address >= found->first + found->second.size) return;
    base = found->first;
    if (found->second.opened++ == 0) mprotect(base, found->second.size, PROT_READ | PROT_WRITE);
  }
  ~Open() {
    if (base == nullptr) return;
    std::lock_guard<std::recursive_mutex> held(mutex);
    Region &region = regions()[base];
    if (--region.opened == 0) mprotect(base, region.size, PROT_NONE);
  }

 private:
  char *base = nullptr;
};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, &release, DEVICE};
    size_t whole = (size + PAGE - 1) / PAGE * PAGE;
    void *data = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(data != MAP_FAILED, "the device is out of memory");
    std::lock_guard<std::recursive_mutex> held(mutex);
    regions()[static_cast<char *>(data)] = {whole, 0};
    return {data, data, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void *to, const void *from, std::size_t count) const override {
    Open target(to), source(from);
    default_copy_data(to, from, count);
  }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

/* -- what torch asks of a device ---------------------------------------------------------------------------------------------- */

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void **, const c10::Stream &, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void *, const c10::Stream &) const override {}
  bool queryEvent(void *) const override { return true; }
  void destroyEvent(void *, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  at::Device getDeviceFromPtr(void *) const override { return DEVICE; }
  bool isPinnedPtr(const void *) const override { return false; }
};
const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

/* -- operations that know where memory is ------------------------------------------------------------------------------------- */

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype),
                                   format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

/* The tensor as the CPU sees it, while its memory is open. */
Tensor seen(const Tensor &tensor) {
  if (tensor.device().type() != KIND) return tensor;
  auto keep = [storage = tensor.storage()](void *) {};
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), keep, tensor.options().device(at::kCPU), at::kCPU);
}

Tensor copy_from(const Tensor &from, const Tensor &to, bool) {
  if (to.device().type() != KIND && !inside) waits++; /* its memory is not pinned: the host waits, whatever it has asked for */
  Open source(from.storage().data()), target(to.storage().data());
  at::NoGradGuard none;
  seen(to).copy_(seen(from).expand(to.sizes()));
  return to;
}

Tensor copy_from_and_resize(const Tensor &from, const Tensor &to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const Tensor &tensor) {
  if (!inside) waits++;
  Open open(tensor.storage().data());
  return at::_local_scalar_dense(seen(tensor));
}

const Tensor &resize_(const Tensor &self, Sizes size, std::optional<at::MemoryFormat>) {
  self.unsafeGetTensorImpl()->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const at::Storage &storage = self.storage();
  size_t wanted = static_cast<size_t>(self.numel() + self.storage_offset()) * self.itemsize();
  if (storage.nbytes() < wanted) {
    auto fresh = memory.allocate(wanted);
    if (storage.nbytes()) memory.copy_data(fresh.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr(std::move(fresh));
    storage.set_nbytes(wanted);
  }
  return self;
}

Tensor as_strided(const Tensor &self, Sizes size, Sizes stride, std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt);
}

Tensor reshape_alias(const Tensor &self, Sizes size, Sizes stride) {
  return as_strided(self, size, stride, c10::SymInt(self.storage_offset()));
}

Tensor view(const Tensor &self, Sizes size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

Tensor &set_part(Tensor &self, at::Storage source, c10::SymInt offset, Sizes size, Sizes stride) {
  auto *impl = self.unsafeGetTensorImpl();
  impl->set_storage_and_dtype(source, self.dtype());
  impl->set_storage_offset(offset.expect_int());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}

Tensor &set_storage(Tensor &self, at::Storage source) {
  auto size = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_part(self, source, 0, {c10::SymInt(size)}, {c10::SymInt(1)});
}

Tensor &set_tensor(Tensor &self, const Tensor &source) {
  return set_part(self, source.storage(), source.sym_storage_offset(), source.sym_sizes(), source.sym_strides());
}

/* -- kernels ------------------------------------------------------------------------------------------------------------------ */

Tensor here(const Tensor &tensor) { return tensor.defined() ? tensor.to(at::kCPU) : tensor; }
Tensor there(const Tensor &tensor) { return tensor.defined() ? tensor.to(DEVICE) : tensor; }
MaybeTensor here(const MaybeTensor &tensor) { return tensor ? MaybeTensor(here(*tensor)) : tensor; }

Tensor convolution(const Tensor &input, const Tensor &weight, const MaybeTensor &bias, Sizes stride, Sizes padding, Sizes dilation,
                   bool transposed, Sizes output_padding, c10::SymInt groups) {
  Inside kernel;
  return there(at::convolution_symint(here(input), here(weight), here(bias), stride, padding, dilation, transposed, output_padding,
                                      groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor &gradient, const Tensor &input, const Tensor &weight, Sizes stride,
                                                        Sizes padding, Sizes dilation, bool transposed, Sizes output_padding,
                                                        c10::SymInt groups, std::array<bool, 3> wanted) {
  Inside kernel;
  c10::SymInt bias[] = {transposed ? weight.sym_size(1) * groups : weight.sym_size(0)};
  auto [x, w, b] = at::convolution_backward_symint(here(gradient), here(input), here(weight), Sizes(bias), stride, padding, dilation,
                                                   transposed, output_padding, groups, wanted);
  return {there(x), there(w), there(b)};
}

/* Its schema does not say that it changes the running statistics, so that the fallback would lose the change. */
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor &input, const MaybeTensor &weight, const MaybeTensor &bias,
                                              const MaybeTensor &mean, const MaybeTensor &variance, bool training, double momentum,
                                              double eps) {
  Inside kernel;
  MaybeTensor running[] = {here(mean), here(variance)};
  auto [y, m, v] = at::native_batch_norm(here(input), here(weight), here(bias), running[0], running[1], training, momentum, eps);
  if (mean && mean->defined()) mean->copy_(*running[0]);
  if (variance && variance->defined()) variance->copy_(*running[1]);
  return {there(y), there(m), there(v)};
}

void any_other(const c10::OperatorHandle &operation, torch::jit::Stack *stack) {
  Inside kernel;
  at::native::cpu_fallback(operation, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&any_other>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("resize_", &resize_);
  library.impl("as_strided", &as_strided);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("view", &view);
  library.impl("unfold", &at::native::unfold);
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_.source_Storage_storage_offset", &set_part);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
  library.impl("native_batch_norm", &batch_norm);
}

}  // namespace

/* How often the host has waited so far. */
extern "C" int64_t device_waits() { return waits; }

/* Whether this thread's copies are the device's own from here on, which run behind the host's back. */
extern "C" void device_copies(bool on) { inside += on ? 1 : -1; }
