// The Elman cell, forward and backward: h' = tanh or relu (W_i x + b_i + W_h h + b_h) (Elman 1990).

struct RnnTanh {
  static constexpr int kGates = 1;
  static constexpr int kSlots = 1;  // saved: h'
  static constexpr bool kHasCell = false;
  static constexpr bool kBlends = false;
  static constexpr int kHiddenSlot[] = {0};

  template <class V>
  RNNFAST_INLINE static V forward(V* s, V&, V) {
    return s[0] = tanh(s[0]);
  }

  template <class V>
  RNNFAST_INLINE static V output(const V*, V) {
    return V{};
  }

  // da = dh' (1 - h'^2)
  template <class V>
  RNNFAST_INLINE static V backward(const V* s, V, V, V, V dh, V&, V* da, V*) {
    da[0] = dh * d_tanh(s[0]);
    return V{};
  }
};

struct RnnRelu : RnnTanh {
  template <class V>
  RNNFAST_INLINE static V forward(V* s, V&, V) {
    return s[0] = relu(s[0]);
  }

  // da = 0 where h' <= 0, else dh'
  template <class V>
  RNNFAST_INLINE static V backward(const V* s, V, V, V, V dh, V&, V* da, V*) {
    da[0] = relu_backward(s[0], dh);
    return V{};
  }
};
