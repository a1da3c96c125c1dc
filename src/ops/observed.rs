//! A device that shows an observer what it is asked for.

use super::*;

/// Runs the operations and copies of an [`Observed`] device on the device `inner`.
pub trait Observer {
    /// The library that the observer works with, if any: its purpose, and its path.
    fn library(&self) -> Option<(&'static str, String)> {
        None
    }

    fn call(&self, inner: &mut dyn Ops, call: &Call) -> Result<()>;

    /// Whether it looks at each operation now. If not, operations may pass it by.
    fn is_watching(&self) -> bool;

    fn enter(&self, inner: &mut dyn Ops, span: Span) {
        inner.enter(span);
    }

    fn leave(&self, inner: &mut dyn Ops) {
        inner.leave();
    }

    fn upload(&self, inner: &mut dyn Ops, dst: Tensor, src: &[u8]) -> Result<()> {
        inner.upload(dst, src)
    }

    fn download(&self, inner: &mut dyn Ops, dst: &mut [u8], src: Tensor) -> Result<()> {
        inner.download(dst, src)
    }

    fn copy(&self, inner: &mut dyn Ops, dst: Tensor, src: Tensor) -> Result<()> {
        inner.copy(dst, src)
    }
}

/// A device that passes everything on to another one, by way of its observer.
pub struct Observed<O> {
    inner: Box<dyn Ops>,
    observer: O,
}

impl<O: Observer> Observed<O> {
    pub fn new(inner: Box<dyn Ops>, observer: O) -> Self {
        Observed { inner, observer }
    }
}

impl<O: Observer> CallDevice for Observed<O> {
    fn call(&mut self, call: Call) -> Result<()> {
        self.observer.call(self.inner.as_mut(), &call)
    }

    fn repeat(&mut self, key: GraphKey, work: &mut Work) -> Result<()> {
        if self.observer.is_watching() { work(self) } else { self.inner.replay(key, work) }
    }
}

impl<O: Observer> Device for Observed<O> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn libraries(&mut self) -> Result<Vec<(&'static str, String)>> {
        let observers = self.observer.library();
        Ok(self.inner.libraries()?.into_iter().chain(observers).collect())
    }

    fn float_dtype(&self) -> Dtype {
        self.inner.float_dtype()
    }

    fn operand_dtype(&self) -> Dtype {
        self.inner.operand_dtype()
    }

    fn scratch_bytes(&self, limits: &Limits) -> Result<usize> {
        self.inner.scratch_bytes(limits)
    }

    fn logits_bytes(&self) -> usize {
        self.inner.logits_bytes()
    }

    fn allocate(&mut self, plan: &MemoryPlan) -> Result<()> {
        self.inner.allocate(plan)
    }

    fn upload(&mut self, dst: Tensor, src: &[u8]) -> Result<()> {
        self.observer.upload(self.inner.as_mut(), dst, src)
    }

    fn download(&mut self, dst: &mut [u8], src: Tensor) -> Result<()> {
        self.observer.download(self.inner.as_mut(), dst, src)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.inner.synchronize()
    }

    fn copy(&mut self, dst: Tensor, src: Tensor) -> Result<()> {
        self.observer.copy(self.inner.as_mut(), dst, src)
    }

    fn lend(&mut self, tensor: Tensor) -> Buffer {
        self.inner.lend(tensor)
    }

    fn reclaim(&mut self, tensor: Tensor) {
        self.inner.reclaim(tensor);
    }

    fn stamp(&mut self) -> Result<()> {
        self.inner.stamp()
    }

    fn take_stamps(&mut self) -> Result<Vec<Duration>> {
        self.inner.take_stamps()
    }

    fn enter(&mut self, span: Span) {
        self.observer.enter(self.inner.as_mut(), span);
    }

    fn leave(&mut self) {
        self.observer.leave(self.inner.as_mut());
    }

    fn record_for_profiler(&mut self, on: bool) -> Result<()> {
        self.inner.record_for_profiler(on)
    }

    fn gpu(&self) -> Option<Gpu> {
        self.inner.gpu()
    }

    fn host_bytes(&self, limits: &Limits, head_gradient: bool) -> usize {
        self.inner.host_bytes(limits, head_gradient)
    }

    fn gpu_memory(&mut self) -> Option<GpuMemory> {
        self.inner.gpu_memory()
    }

    fn gpu_state(&mut self) -> Result<String> {
        self.inner.gpu_state()
    }
}
