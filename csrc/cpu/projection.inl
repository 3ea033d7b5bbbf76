// The input of a segment's steps made from x, u_t = W_ih x_t + b, in the sums themselves: each begins with its bias,
// takes up W_ih x_t and then W_hh h_{t-1}. A sequence of u would be written, and read again, once through the whole
// memory hierarchy; the GEMM that makes it would be a second call on all threads. Included inside a per-ISA namespace.
//
// What is multiplied is x as it lies there. With rows enough to fill tiles, each tile of a step begins with its own
// part of x. With fewer, a tile of W_ih x_t is made of as many steps instead, for `steps_together` steps ahead, so that
// the weights are loaded into registers for several of them, if their rows are evenly spaced. Rows of a padded batch
// that are not in order are put side by side first, a step's at a time. An element's sum has one order either way.

template <class K>
class ProjectedInput {
  using S = typename K::Storage;
  using Sum = typename K::Sum;

 public:
  // `weights` are the group's packed W_ih; `bias` its b_ih + b_hh, padded to whole vectors; `room` is for inputs of
  // `steps_together` steps of the segment's rows, or for its rows of x (planner.h).
  ProjectedInput(Worker<K>& me, const Segment& seg, const Panels& panels, const Sum* weights, const Sum* bias,
                 Sum* room, int64_t steps_together)
      : me_(me),
        seg_(seg),
        x_(me.problem.projection.x),
        panels_(panels),
        weights_(weights),
        bias_(bias),
        room_(room),
        steps_together_(steps_together),
        direction_(me.problem.direction[seg.group]),
        gathers_(me.problem.rows.order && !x_.packed()) {}

  // The sums of a step's rows [begin, end) in a panel of W_hh, as far as x makes them: in `tile`, where they are to lie
  // `pitch` apart, or in a place and apart as this says. Steps come in order.
  Sum* begin_sums(int64_t step, const Panel& panel, int64_t begin, int64_t end, Sum* tile, int64_t* pitch) {
    if (me_.plan.ahead) {
      if (step >= made_to_ || me_.panel_begin != panel_begin_ || me_.panel_end != panel_end_) make_ahead(step);
      *pitch = panels_.padded_columns();
      return room_ + ((step - made_from_) * seg_.count + begin) * *pitch + panel.column;
    }
    if (gathers_) {
      if (step >= made_to_) gather(step);
      project(room_ + begin * me_.plan.x_stride, me_.plan.x_stride, end - begin, panel, tile, *pitch);
    } else {
      project(x_at(step, begin), seg_.step * x_.row_stride, end - begin, panel, tile, *pitch);
    }
    return tile;
  }

 private:
  int64_t time(int64_t step) const { return direction_ < 0 ? me_.problem.shape.time - 1 - step : step; }
  const S* x_at(int64_t step, int64_t i) const { return x_.at(me_.problem.rows, time(step), seg_.row(i)); }

  void gather(int64_t step) {
    made_to_ = step + 1;
    const int64_t alive = seg_.alive(me_.problem.rows, time(step)), features = me_.problem.shape.features;
    Sum* to = room_;
    for (int64_t i = 0; i < alive; ++i, to += me_.plan.x_stride) convert_row(to, x_at(step, i), features);
  }

  // Up to a tile of rows of x, `stride` apart.
  void project(const S* x, int64_t stride, int64_t rows, const Panel& panel, Sum* sums, int64_t pitch) {
    const Sum* bias = bias_ + panel.column;
    for (int64_t i = 0; i < rows; ++i) convert_row(sums + i * pitch, bias, panel.width * panels_.lanes);
    me_.kernel.multiply_onto(x, stride, static_cast<int>(rows), weights_ + panels_.offset(panel), panel.columns,
                             me_.plan.chains, panels_.depth, sums, pitch, true);
  }

  // My columns, for some steps from this one on; again, where I have taken over a peer's.
  void make_ahead(int64_t step) {
    made_from_ = step;
    made_to_ = std::min(step + steps_together_, me_.problem.shape.time);
    panel_begin_ = me_.panel_begin;
    panel_end_ = me_.panel_end;
    const int64_t row_pitch = panels_.padded_columns(), step_pitch = seg_.count * row_pitch;
    const int64_t stride = direction_ * x_.time_stride, steps = made_to_ - made_from_;
    const int64_t begin = me_.panel_begin * panels_.count / me_.panels.count;
    const int64_t end = me_.panel_end * panels_.count / me_.panels.count;
    for (int64_t j = begin; j < end; ++j) {
      const Panel panel = panels_.at(j);
      const int64_t tallest = me_.kernel.tallest(panel.width);
      for (int64_t i = 0; i < seg_.count; ++i) {
        Sum* const sums = room_ + i * row_pitch + panel.column;
        for_each_tile(steps, tallest, [&](int64_t from, int64_t to) {
          project(x_at(step + from, i), stride, to - from, panel, sums + from * step_pitch, step_pitch);
        });
      }
    }
  }

  Worker<K>& me_;
  const Segment& seg_;
  const Sequence<const S>& x_;
  const Panels& panels_;  // of W_ih; where steps are not made ahead, cut as those of W_hh
  const Sum* weights_;
  const Sum* bias_;
  Sum* room_;
  int64_t steps_together_, direction_;
  bool gathers_;
  int64_t made_from_ = 0, made_to_ = 0, panel_begin_ = 0, panel_end_ = 0;
};

// b_ih + b_hh of panel j, padded by zeros.
template <class T>
void fill_bias(const Projection<T>& p, const Panels& panels, int64_t group, int64_t j, T* bias) {
  const int64_t at = group * panels.hidden;
  for (int64_t c = panels.first(j) * panels.lanes; c < panels.first(j + 1) * panels.lanes; ++c)
    bias[c] = p.b_ih && c < panels.hidden ? p.b_ih[at + c] + p.b_hh[at + c] : 0;
}
