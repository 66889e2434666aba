// The GRU cell, forward and backward (Cho et al. 2014, in the form of cuDNN and torch: the reset gate acts
// after the hidden product and its bias). Gates in torch's order r z n.

struct Gru {
  static constexpr int kGates = 3;
  static constexpr int kSlots = 4;  // saved: r z n, and q = W_hn h + b_hn
  static constexpr bool kHasCell = false;
  static constexpr bool kBlends = true;            // h itself is part of h'
  static constexpr int kHiddenSlot[] = {0, 1, 3};  // q stays apart from W_in x + b_in

  // in: s = [a_r, a_z, W_in x + b_in, q], h;  out: s = r z n q, returns h'
  template <class V>
  RNNFAST_INLINE static V forward(V* s, V&, V h) {
    V &r = s[0], &z = s[1], &n = s[2], q = s[3];
    // r = sigmoid(.)  z = sigmoid(.)  n = tanh(W_in x + b_in + r q)
    r = sigmoid(r);
    z = sigmoid(z);
    n = tanh(fma(r, q, n));
    // h' = (1 - z) n + z h
    return fma(Real<V>::kOne - z, n, z * h);
  }

  template <class V>
  RNNFAST_INLINE static V output(const V*, V) {
    return V{};
  }

  // out: dx = dL/d(W_i x + b_i) per gate, da = dL/d(W_h h + b_h) per gate; returns dL/dh past W_hh
  template <class V>
  RNNFAST_INLINE static V backward(const V* s, V h, V, V, V dh, V&, V* da, V* dx) {
    const V r = s[0], z = s[1], n = s[2], q = s[3];
    const V dn = dh * (Real<V>::kOne - z) * d_tanh(n);
    dx[0] = dn * q * d_sigmoid(r);
    dx[1] = dh * (h - n) * d_sigmoid(z);
    dx[2] = dn;
    da[0] = dx[0];
    da[1] = dx[1];
    da[2] = dn * r;
    return dh * z;
  }
};
