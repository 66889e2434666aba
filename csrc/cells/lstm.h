// The LSTM cell, forward and backward (Hochreiter & Schmidhuber 1997, with the forget gate of Gers 2000).
// Gates in torch's order i f g o; the argument arrays hold one value per gate, of one hidden unit and one
// row.

struct Lstm {
  static constexpr int kGates = 4;                    // rows of W per hidden unit
  static constexpr int kSlots = 4;                    // values saved per hidden unit: i f g o
  static constexpr bool kHasCell = true;              // c is carried beside h
  static constexpr bool kBlends = false;              // h' is made of the gates and c alone
  static constexpr int kHiddenSlot[] = {0, 1, 2, 3};  // the slot that W_hh h is added to, per gate

  // in: s = W_i x + b_i + W_h h + b_h per gate;  out: s = i f g o, c = c', returns h'
  template <class V>
  RNNFAST_INLINE static V forward(V* s, V& c, V) {
    // i = sigmoid(.)  f = sigmoid(.)  g = tanh(.)  o = sigmoid(.)
    V &i = s[0], &f = s[1], &g = s[2], &o = s[3];
    i = sigmoid(i);
    f = sigmoid(f);
    g = tanh(g);
    o = sigmoid(o);
    // c' = f c + i g
    c = fma(f, c, i * g);
    // h' = o tanh(c')
    return o * tanh(c);
  }

  // h' from what is saved: what a projection multiplies
  template <class V>
  RNNFAST_INLINE static V output(const V* s, V c) {
    return s[3] * tanh(c);
  }

  // in: s = i f g o, c_prev, c = c', dh = dL/dh', dc = dL/dc' (from the step after)
  // out: da = dL/d(pre-activation) per gate, dc = dL/dc; returns the part of dL/dh that does not pass W_hh
  template <class V>
  RNNFAST_INLINE static V backward(const V* s, V, V c_prev, V c, V dh, V& dc, V* da, V*) {
    const V i = s[0], f = s[1], g = s[2], o = s[3];
    const V tc = tanh(c);
    // dc' += dh' o (1 - tanh(c')^2)
    dc = fma(dh * o, d_tanh(tc), dc);
    da[0] = dc * g * d_sigmoid(i);
    da[1] = dc * c_prev * d_sigmoid(f);
    da[2] = dc * i * d_tanh(g);
    da[3] = dh * tc * d_sigmoid(o);
    // dc = dc' f
    dc = dc * f;
    return V{};
  }
};
