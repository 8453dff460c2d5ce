// LookupFFN as an operation of OpenVINO: y = LookupFFN(x, weights, tables), on OpenVINO's own threads. Built on the
// machine that runs it (compress/openvino/library.py), against the OpenVINO that is installed there.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>
#include <openvino/op/util/unary_elementwise_arithmetic.hpp>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

extern "C" {
#include "arena.h"
#include "ffn.h"
}

namespace {

void run_on_tbb(int threads, ffn_task task, void *context) {
    // Isolated: a thread that waits here must not begin another request, which would want the same scratch.
    tbb::this_task_arena::isolate([&] {
        tbb::parallel_for(0, threads, [&](int index) { task(context, index, threads); }, tbb::static_partitioner());
    });
}

// One student's buffers, copied once to memory in huge pages: a constant lies wherever its file puts it.
class Buffers {
public:
    const ffn &get(const ffn &sizes, const void *weights, const void *tables) {
        std::call_once(once_, [&] {
            ffn_ = sizes;
            weights_ = copy(weights, static_cast<size_t>(sizes.weight_bytes));
            tables_ = copy(tables, static_cast<size_t>(sizes.table_bytes));
            ffn_.weights = weights_.get();
            ffn_.table_rows = tables_.get();
        });
        return ffn_;
    }

private:
    struct Release {
        void operator()(char *memory) const { arena_release(memory); }
    };
    using Memory = std::unique_ptr<char, Release>;

    static Memory copy(const void *from, size_t bytes) {
        Memory memory(static_cast<char *>(arena_take(bytes)));
        if (!memory)
            throw std::bad_alloc();
        std::memcpy(memory.get(), from, bytes);
        return memory;
    }

    std::once_flag once_;
    ffn ffn_;
    Memory weights_, tables_;
};

void check_x(const ov::Node *node, const ffn &sizes) {
    const auto &type = node->get_input_element_type(0);
    NODE_VALIDATION_CHECK(node, type.is_dynamic() || type == ov::element::f32, "x is ", type, ", not f32");
    const auto &shape = node->get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(node, shape.rank().is_dynamic() ||
                                    (shape.size() > 0 && shape[shape.size() - 1].compatible(sizes.d_in)),
                          "x is ", shape, ", not [..., ", sizes.d_in, "]");
}

void run(const ffn &f, const ov::Tensor &x, ov::Tensor &y) {
    ov::Shape shape = x.get_shape();
    OPENVINO_ASSERT(!shape.empty() && shape.back() == static_cast<size_t>(f.d_in), "LookupFFN: x of another width");
    shape.back() = static_cast<size_t>(f.d_out);
    y.set_shape(shape);
    const auto tokens = static_cast<int64_t>(x.get_size() / static_cast<size_t>(f.d_in));
    const int threads = tbb::this_task_arena::max_concurrency();
    const int status = ffn_forward_on(run_on_tbb, &f, x.data<const float>(), y.data<float>(), tokens, threads);
    OPENVINO_ASSERT(status == 0, "LookupFFN: no memory for intermediate results");
}

// A student with its buffers inside; what a LookupFFN becomes when a model is compiled, and never in a file.
class BoundLookupFFN : public ov::op::util::UnaryElementwiseArithmetic {
public:
    OPENVINO_OP("BoundLookupFFN", "compress", ov::op::util::UnaryElementwiseArithmetic);

    BoundLookupFFN(const ov::Output<ov::Node> &x, const ffn &bound, std::shared_ptr<Buffers> buffers)
        : UnaryElementwiseArithmetic(x), ffn_(bound), buffers_(std::move(buffers)) {
        constructor_validate_and_infer_types();
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override {
        check_new_args_count(this, inputs);
        return std::make_shared<BoundLookupFFN>(inputs[0], ffn_, buffers_);
    }

    void validate_and_infer_types() override {
        check_x(this, ffn_);
        set_output_type(0, ov::element::f32, get_input_partial_shape(0));
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override {
        run(ffn_, inputs[0], outputs[0]);
        return true;
    }

private:
    ffn ffn_;
    std::shared_ptr<Buffers> buffers_;
};

class LookupFFN : public ov::op::Op {
public:
    OPENVINO_OP("LookupFFN", "compress");

    LookupFFN() = default;

    LookupFFN(const ov::OutputVector &inputs, std::vector<int64_t> settings, int64_t layout_version,
              std::shared_ptr<Buffers> buffers)
        : Op(inputs), settings_(std::move(settings)), layout_version_(layout_version), buffers_(std::move(buffers)) {
        constructor_validate_and_infer_types();
    }

    bool visit_attributes(ov::AttributeVisitor &visitor) override {
        visitor.on_attribute("settings", settings_);
        visitor.on_attribute("layout_version", layout_version_);
        return true;
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override {
        check_new_args_count(this, inputs);
        const bool same = inputs[1] == input_value(1) && inputs[2] == input_value(2);
        return std::make_shared<LookupFFN>(inputs, settings_, layout_version_,
                                           same ? buffers_ : std::make_shared<Buffers>());
    }

    void validate_and_infer_types() override {
        NODE_VALIDATION_CHECK(this, get_input_size() == 3, "takes x, weights and tables");
        NODE_VALIDATION_CHECK(this, layout_version_ == LAYOUT_VERSION, "layout version ", layout_version_,
                              ", this library reads ", LAYOUT_VERSION, ": export the checkpoint again");
        NODE_VALIDATION_CHECK(this, settings_.size() == SETTINGS && ffn_layout(&sizes_, settings_.data()) == 0,
                              "settings that no packed LookupFFN has");
        check_buffer(1, sizes_.weight_bytes);
        check_buffer(2, sizes_.table_bytes);
        check_x(this, sizes_);
        ov::PartialShape shape = get_input_partial_shape(0);
        if (shape.rank().is_static())
            shape[shape.size() - 1] = sizes_.d_out;
        set_output_type(0, ov::element::f32, shape);
    }

    // OpenVINO's CPU plugin infers the shape of an operation that it does not know at every call, by copying it, and
    // prepares nothing behind it before it is done: 50 microseconds with two threads. Of an elementwise operation of
    // one input it knows that the shape stays. So, where it does, constants are folded into the operation; but not in a
    // model that is still to be written, as its mark says (compress/openvino/graph.py), which no file keeps.
    bool can_constant_fold(const ov::OutputVector &inputs) const override {
        return sizes_.d_in == sizes_.d_out && constant(inputs, 1) && constant(inputs, 2) &&
               !get_rt_info().count("lookup_ffn_unfolded");
    }

    bool constant_fold(ov::OutputVector &outputs, const ov::OutputVector &inputs) override {
        if (!can_constant_fold(inputs))
            return false;
        const ffn &bound = buffers_->get(sizes_, constant(inputs, 1)->get_data_ptr(), constant(inputs, 2)->get_data_ptr());
        outputs[0] = std::make_shared<BoundLookupFFN>(inputs[0], bound, buffers_)->output(0);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override {
        OPENVINO_ASSERT(inputs[1].get_byte_size() == static_cast<size_t>(sizes_.weight_bytes) &&
                            inputs[2].get_byte_size() == static_cast<size_t>(sizes_.table_bytes),
                        "LookupFFN: tensors of another geometry");
        run(buffers_->get(sizes_, inputs[1].data(), inputs[2].data()), inputs[0], outputs[0]);
        return true;
    }

private:
    enum { LAYOUT_VERSION = 3 };

    static std::shared_ptr<ov::op::v0::Constant> constant(const ov::OutputVector &inputs, size_t input) {
        return ov::as_type_ptr<ov::op::v0::Constant>(inputs[input].get_node_shared_ptr());
    }

    void check_buffer(size_t input, int64_t bytes) const {
        const auto &type = get_input_element_type(input);
        NODE_VALIDATION_CHECK(this, type.is_dynamic() || type == ov::element::u8, "input ", input, " is ", type,
                              ", not u8");
        NODE_VALIDATION_CHECK(this, get_input_partial_shape(input).compatible(ov::PartialShape{bytes}), "input ", input,
                              " is ", get_input_partial_shape(input), ", its settings say [", bytes, "]");
    }

    std::vector<int64_t> settings_;
    int64_t layout_version_ = 0;
    ffn sizes_{};
    std::shared_ptr<Buffers> buffers_ = std::make_shared<Buffers>();
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<LookupFFN>>()}));
