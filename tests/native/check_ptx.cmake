# Whether nvcc's PTX of test_device.cu has the instructions that its architecture has, rather than what stands in for
# them: cmake -DPTX=<file> -DARCH=<number> -P check_ptx.cmake
file(READ ${PTX} text)

function(expect_from least instruction)
  string(FIND "${text}" "${instruction}" at)
  if(ARCH GREATER_EQUAL least AND at EQUAL -1)
    message(FATAL_ERROR "${instruction} is missing for sm_${ARCH}")
  elseif(ARCH LESS least AND NOT at EQUAL -1)
    message(FATAL_ERROR "${instruction} does not exist on sm_${ARCH}")
  endif()
endfunction()

foreach(instruction
    ld.acquire.gpu.global.u32 st.release.gpu.global.u32 barrier.sync barrier.arrive tanh.approx.f32
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16)
  expect_from(75 ${instruction})
endforeach()
foreach(instruction
    cp.async.ca.shared.global cp.async.cg.shared.global cp.async.commit_group cp.async.wait_group
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 cvt.rn.bf16.f32 cvt.rn.bf16x2.f32 cvt.rn.f16x2.f32 cvt.rna.tf32.f32)
  expect_from(80 ${instruction})
endforeach()
foreach(instruction barrier.cluster.arrive.release barrier.cluster.wait.acquire mapa.u64 %cluster_ctarank)
  expect_from(90 ${instruction})
endforeach()
